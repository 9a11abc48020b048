"""The training script, from settings to a model folder, on a tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from e2rank_st import E2Rank
from e2rank_st.adapters import WEIGHTS, read_adapter_config
from e2rank_st.cli.app import app
from e2rank_st.search.texts import TextVectors
from e2rank_st.training.datasets import frozen_vectors
from e2rank_st.training.resuming import complete_checkpoints
from e2rank_st.training.run import main, prepare
from e2rank_st.training.settings import parse_settings
from e2rank_st.training.trainer import E2RankTrainer
from tests.toy import small_disk, toy_rows
from tests.training.conftest import SHARED, write

pytest.importorskip("datasets")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")


def history(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "final" / "training.json").read_text(encoding="utf-8"))
    return values


def planned(*flags: str) -> dict[str, str]:
    """The lines of a plan, by the command."""
    done = CliRunner().invoke(app, ["train", *flags, "--dry-run"])
    assert done.exit_code == 0, done.output
    return dict(line.split("\t") for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, settings: Path) -> Path:
    """A run of one process that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    main([str(settings), *SHARED, "--dataloader_drop_last", "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, settings: Path) -> Path:
    """A run that trains an adapter against frozen documents."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    main([str(settings), *FROZEN, "--max_steps", "4", "--learning_rate", "1e-2", "--output_dir", str(folder)])
    return folder


FROZEN = (
    "--freeze_documents", "true", "--query_weight", "0.25", "--contrastive_weight", "0", "--guard_weight", "1",
    "--lora_rank", "4",
)  # fmt: skip


def test_smoke(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a script whose parts work and whose run does not: a model that gets better, and is usable."""
    caplog.set_level("INFO", "e2rank_st")
    # Few slates are learned by heart and teach nothing: 24 of them left 48 other queries where they were.
    sources = [write(tmp_path / f"{name}.jsonl", toy_rows(200, seed, name)) for seed, name in enumerate(("a", "b"))]
    dev = write(tmp_path / "dev.jsonl", toy_rows(64, seed=3))
    folder = tmp_path / "run"
    options = ["--per_device_train_batch_size", "8", "--learning_rate", "5e-3", "--max_steps", "60"]
    options += ["--logging_steps", "2", "--eval_steps", "15", "--save_steps", "15", "--output_dir", str(folder)]
    main([str(settings), "--train", *sources, "--dev", dev, *options])
    record = history(folder)
    for system in ("embedding", "listwise"):
        metric = f"dev_{system}_ndcg@10"
        assert record["after"][metric] > record["before"][metric] + 0.1
        assert record["p_values"][metric] < 0.01
    model = E2Rank(str(folder / "final"), device="cpu")
    assert (model.listwise.num_prompt_documents, model.listwise.max_prompt_tokens) == (4, 200)
    assert model.listwise.candidate_order == "similarity"
    best = E2Rank(str(folder / f"checkpoint-{record['best_step']}"), device="cpu")
    assert all(torch.equal(value, best.state_dict()[name]) for name, value in model.state_dict().items())
    # The record: the settings, the data, the losses and the metrics.
    assert record["settings"]["learning_rate"] == 5e-3
    assert record["loss"]["listwise_weight"] == 2.0
    assert [len(record["data"][name]) for name in ("train", "dev")] == [2, 1]
    assert all(len(entry["sha256"]) == 64 for entries in record["data"].values() for entry in entries)
    assert [row["step"] for row in record["log"]] == list(range(2, 61, 2))
    assert {"loss", "contrastive", "listwise", "learning_rate"} <= record["log"][0].keys()
    assert [row["step"] for row in record["dev"]] == [0, 15, 30, 45, 60]
    assert record["dev"][0]["dev_listwise_ndcg@10"] == record["before"]["dev_listwise_ndcg@10"]
    best_row = max(record["dev"][1:], key=lambda row: row["dev_listwise_ndcg@10"])
    assert best_row["dev_listwise_ndcg@10"] == record["after"]["dev_listwise_ndcg@10"]
    assert {"torch", "transformers", "e2rank-st"} <= record["environment"]["versions"].keys()
    assert (folder / "final" / "curves.png").exists()
    assert not list(folder.glob(".unfinished*"))
    # Texts of the training data may not be published with the model.
    card = (folder / "final" / "README.md").read_text(encoding="utf-8")
    assert "about flea" not in card
    assert "what is" not in card
    kept = caplog.messages.index(f"evaluating the kept checkpoint: step {record['best_step']}")
    assert not any(message.startswith("step ") for message in caplog.messages[kept:])  # it would name the last step
    summary = capsys.readouterr().out
    assert "dev_listwise" in summary
    assert f"{record['after']['dev_listwise_ndcg@10']:.4f}" in summary


def test_dry_run_plans_and_leaves_no_trace(settings: Path, tmp_path: Path) -> None:
    """Guards against a plan that trains, writes or counts otherwise, and a command that takes the flags for its own."""
    output = ("--output_dir", str(tmp_path / "run"))
    plan = planned(str(settings), *output)
    assert plan["slates"] == "24 (first 16, second 8)"
    assert plan["steps"] == "12 of 4 slates (2 epochs)"
    assert plan["parameters"].startswith("34,016 trained")
    assert plan["nothing to learn"] == "0.0% without positive, 0.0% without preference"
    tokens = int(plan["tokens a step"].split()[0].replace(",", ""))
    assert tokens > 4 * 5 * 5
    frozen = planned(str(settings), *FROZEN, *output)
    assert int(frozen["tokens a step"].split()[0].replace(",", "")) < 0.8 * tokens
    assert not (tmp_path / "run").exists()
    assert "--num_prompt_documents" in CliRunner().invoke(app, ["train", "--help"]).stdout
    wrong = CliRunner().invoke(app, ["train", str(settings), *output, "--max_step", "5"])
    assert wrong.exit_code == 1
    assert "Unknown setting 'max_step'; did you mean 'max_steps'?" in wrong.stderr


def test_stage_one_and_no_data_to_evaluate_on(tmp_path: Path, checkpoint: Path) -> None:
    """Guards against a stage I that needs other code: pairs, contrastive only."""
    pairs = [
        {"anchor": row["query"], "positive": row["documents"][0], "negative": row["documents"][1]}
        for row in toy_rows(16, seed=4)
    ]
    path = write(tmp_path / "pairs.jsonl", pairs)
    flags = ["--listwise_weight", "0", "--mini_batch_size", "8", "--max_steps", "3"]
    main(["--model", str(checkpoint), "--train", path, *flags, "--output_dir", str(tmp_path / "one")])
    record = history(tmp_path / "one")
    assert {"loss", "contrastive"} <= record["log"][0].keys()
    assert "listwise" not in record["log"][0]
    assert record["dev"] == []
    assert record["best_step"] is None
    assert record["loss"]["mini_batch_size"] == 8


def test_frozen_documents_and_a_query_weight(adapter: Path) -> None:
    """Guards against vectors that are made anew or forgotten, and against training for another vector than ranks."""
    stored = list((adapter.parent / "vectors").iterdir())
    assert len(stored) == 2, "the documents of two sources"
    assert {TextVectors.load(folder).dimension for folder in stored} == {32}
    record = history(adapter)
    assert record["loss"]["freeze_documents"]
    assert record["loss"]["query_weight"] == 0.25
    assert {"listwise", "guard"} <= record["log"][0].keys()
    assert E2Rank(str(adapter / "final"), device="cpu").listwise.query_weight == 0.25


@pytest.mark.parametrize("size", [50_000, 200_000])  # of the weights, and of the optimizer's state
def test_full_disk_is_one_line(settings: Path, tmp_path: Path, size: int) -> None:
    """Guards against a traceback of safetensors or torch at a checkpoint."""
    flags = ["--max_steps", "1", "--save_steps", "1", "--eval_steps", "1", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(OSError, match=r"Could not write .*Is the disk full\?$"), small_disk(size):
        main([str(settings), *flags])
    assert not complete_checkpoints(tmp_path / "run")


def test_adapter_is_saved_and_goes_on(settings: Path, adapter: Path, tmp_path: Path) -> None:
    """Guards against an adapter folder that holds the base, a second adapter on top, and a stage on another model."""
    first = tmp_path / "stage1"
    shutil.copytree(adapter / "final", first)
    assert (first / "adapter_model.safetensors").exists()
    assert not (first / "model.safetensors").exists()
    model = E2Rank(str(first), device="cpu")
    again = [str(settings), "--model", str(first), "--output_dir", str(tmp_path / "again")]
    with pytest.raises(ValueError, match="adapter already"):
        main([*again, "--lora_rank", "4"])
    main([*again, "--max_steps", "2"])
    gone_on = E2Rank(str(tmp_path / "again" / "final"), device="cpu")
    changed = {name for name, value in gone_on.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    record = history(adapter)
    assert history(tmp_path / "again")["earlier"] == record
    (first / "training.json").write_text(json.dumps(record | {"steps": 9}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"was started with another model in .*stage1"):
        main([*again, "--max_steps", "2", "--resume", "true"])


@pytest.mark.parametrize("bf16", [True, False])
def test_documents_are_embedded_in_the_precision_of_training(
    bf16: bool, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a float32 adapter that takes twice as long before training as within it."""
    precisions = []

    def spy(*args: Any, **options: Any) -> TextVectors:
        precisions.append(torch.is_autocast_enabled("cpu"))
        return frozen_vectors(*args, **options)

    monkeypatch.setattr("e2rank_st.training.run.frozen_vectors", spy)
    flags = ["--bf16", str(bf16).lower(), "--use_cpu", "true", "--output_dir", str(tmp_path)]
    prepare(parse_settings([str(settings), *FROZEN, *flags]))
    assert precisions == [bf16]


def test_adapter_of_the_bundled_base_names_it(settings: Path, tmp_path: Path) -> None:
    """Guards against an adapter that only this machine can load, and one whose base nobody has."""
    own = ["--train", write(tmp_path / "slates.jsonl", toy_rows(2)), "--max_prompt_tokens", "200"]
    flags = ["--lora_rank", "2", "--max_steps", "1", "--output_dir", str(tmp_path / "adapter")]
    main(["--model", "bundled-base", *own, *flags])
    folder = tmp_path / "adapter" / "final"
    assert read_adapter_config(folder)["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert E2Rank.from_adapter(folder, device="cpu").listwise.max_prompt_tokens == 200
    main(["--model", str(folder), *own, "--max_steps", "1", "--output_dir", str(tmp_path / "second")])
    second = tmp_path / "second" / "final"  # a second stage: the same adapter, trained on, and no Hub was asked
    assert history(tmp_path / "second")["earlier"] == history(tmp_path / "adapter")
    assert history(tmp_path / "adapter")["earlier"] is None
    old, new = (read_adapter_config(path) for path in (folder, second))
    assert set(old.pop("target_modules")) == set(new.pop("target_modules"))  # which peft keeps in a set
    assert new == old
    first, then = (load_file(path / WEIGHTS) for path in (folder, second))
    assert 0 < max((then[name] - first[name]).abs().max() for name in first) < 1e-2


def test_models_by_name(settings: Path, tmp_path: Path) -> None:
    """Guards against a prompt adapter on a base that is trained further, and a misread name."""
    output = ["--output_dir", str(tmp_path)]
    for flags in ([], ["--lora_rank", "2"], ["--prompt_adapter", "true"]):
        with pytest.raises(ValueError, match=r"bundled has a prompt adapter, which cannot be trained further"):
            main([str(settings), "--model", "bundled", *flags, *output])
    with pytest.raises(ValueError, match="the model 'runs/stage1/final', which is neither a folder here nor a Hub id"):
        main([str(settings), "--model", "runs/stage1/final", *output])
    with pytest.raises(OSError):  # a bare name is one of Sentence-Transformers' own
        main([str(settings), "--model", "no-such-model", *output])


def test_resumed_script_ends_as_an_unbroken_one(
    settings: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a restart that forgets the start: its metrics, its prompts, its data."""
    folder = tmp_path / "run"
    again = [str(settings), *SHARED, "--dataloader_drop_last", "--output_dir", str(folder)]
    train = E2RankTrainer.training_step

    def dying(self: E2RankTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(E2RankTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            main(again)
    with pytest.raises(ValueError, match="holds a run already; resume it"):
        main(again)
    other = write(tmp_path / "other.jsonl", toy_rows(8))
    for name in ("train", "dev"):  # without its own dev data there would be nothing to compare
        with pytest.raises(ValueError, match=rf"was started with different data \({name}\)"):
            main([*again, "--resume", f"--{name}", other])
    main([*again, "--resume"])
    expected, resumed = history(whole), history(folder)
    assert resumed["resumed_from"] == 4
    assert expected["resumed_from"] is None
    for name in ("log", "dev", "before", "after", "p_values", "best_step", "steps", "data"):
        assert resumed[name] == expected[name], name
    assert "settings that differ" not in caplog.text


def test_two_processes_follow_one(whole: Path, two_processes: Path) -> None:
    """Guards against processes that average something else than one process with the whole batch computes."""
    one, two = history(whole), history(two_processes / "run")
    assert two["environment"]["hardware"]["processes"] == 2
    for name in ("loss", "contrastive", "listwise", "guard"):
        curves = [[row[name] for row in record["log"]] for record in (one, two)]
        assert len(curves[0]) == 6
        assert curves[1] == pytest.approx(curves[0], rel=1e-3, abs=2e-4), name
    assert two["after"] == pytest.approx(one["after"], abs=1e-6)
    weights = [E2Rank(str(folder / "final"), device="cpu").state_dict() for folder in (whole, two_processes / "run")]
    # Adam divides by the size of gradients, so that where one is nearly 0 its rounding counts.
    assert all(torch.allclose(value, weights[1][name], atol=2e-3) for name, value in weights[0].items())
    assert [path.name for path in complete_checkpoints(two_processes / "run")] == ["checkpoint-4", "checkpoint-6"]
    assert (two_processes / "stdout").read_text(encoding="utf-8").count("dev_listwise") == 1, "one process speaks"
