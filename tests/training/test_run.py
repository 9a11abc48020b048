"""The training script, from settings to a model folder, on a tiny model."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from e2rank_st import E2Rank
from e2rank_st.adapters import WEIGHTS, bundled_folder, read_adapter_config
from e2rank_st.cli.app import app
from e2rank_st.search.index import Index
from e2rank_st.training.datasets import document_index
from e2rank_st.training.run import main
from e2rank_st.training.trainer import E2RankTrainer
from tests.toy import toy_rows

pytest.importorskip("datasets")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., Path]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path) -> Path:
    """Stage II on 24 slates of two sources, for 12 steps."""
    values = {
        "model": str(checkpoint),
        "output_dir": str(tmp_path / "run"),
        "train": [
            write(tmp_path / "first.jsonl", toy_rows(16, seed=1, source="first")),
            {"path": write(tmp_path / "second.jsonl", toy_rows(20, seed=2)), "name": "second", "limit": 8},
        ],
        "dev": [write(tmp_path / "dev.jsonl", toy_rows(12, seed=3))],
        "num_prompt_documents": 4,
        "max_prompt_tokens": 200,
        "candidate_order": "similarity",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "eval_steps": 4,
        "save_steps": 4,
    }
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def history(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "final" / "training.json").read_text(encoding="utf-8"))
    return values


def test_smoke(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a script whose parts work and whose run does not: a model that gets better, and is usable."""
    # Few slates are learned by heart and teach nothing: 24 of them left 48 other queries where they were.
    sources = [write(tmp_path / f"{name}.jsonl", toy_rows(200, seed, name)) for seed, name in enumerate(("a", "b"))]
    dev = write(tmp_path / "dev.jsonl", toy_rows(64, seed=3))
    options = ["--per_device_train_batch_size", "8", "--eval_steps", "25", "--save_steps", "25"]
    main([str(settings), "--learning_rate", "3e-3", "--train", *sources, "--dev", dev, *options])
    folder, record = tmp_path / "run", history(tmp_path / "run")
    for system in ("embedding", "listwise"):
        metric = f"dev_{system}_ndcg@10"
        assert record["after"][metric] > record["before"][metric] + 0.1
        assert record["p_values"][metric] < 0.01
    model = E2Rank(str(folder / "final"), device="cpu")
    assert (model.listwise.num_prompt_documents, model.listwise.max_prompt_tokens) == (4, 200)
    assert model.listwise.candidate_order == "similarity"
    best = E2Rank(str(folder / f"checkpoint-{record['best_step']}"), device="cpu")
    assert all(torch.equal(value, best.state_dict()[name]) for name, value in model.state_dict().items())
    # The record: what, from where, how, and the curves.
    assert record["settings"]["learning_rate"] == 3e-3
    assert record["loss"]["listwise_weight"] == 2.0
    assert [len(record["data"][name]) for name in ("train", "dev")] == [2, 1]
    assert all(len(entry["sha256"]) == 64 for entries in record["data"].values() for entry in entries)
    assert [row["step"] for row in record["log"]] == list(range(2, 101, 2))
    assert {"loss", "contrastive", "listwise", "learning_rate"} <= record["log"][0].keys()
    assert [row["step"] for row in record["dev"]] == [0, 25, 50, 75, 100]
    assert record["dev"][0]["dev_listwise_ndcg@10"] == record["before"]["dev_listwise_ndcg@10"]
    best_row = max(record["dev"][1:], key=lambda row: row["dev_listwise_ndcg@10"])
    assert best_row["dev_listwise_ndcg@10"] == record["after"]["dev_listwise_ndcg@10"]
    assert {"torch", "transformers", "e2rank-st"} <= record["environment"]["versions"].keys()
    assert record["environment"]["hardware"]["device"]
    assert record["seconds"] > 0
    assert (folder / "final" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".unfinished*"))
    # Texts of the training data may not be published with the model.
    card = (folder / "final" / "README.md").read_text(encoding="utf-8")
    assert "about flea" not in card
    assert "what is" not in card
    summary = capsys.readouterr().out
    assert "dev_listwise" in summary
    assert f"{record['after']['dev_listwise_ndcg@10']:.4f}" in summary


def test_dry_run_plans_and_leaves_no_trace(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a plan that trains, writes, or counts otherwise than the run."""
    main([str(settings), "--dry_run"])
    plan = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert plan["slates"] == "24 (first 16, second 8)"
    assert plan["steps"] == "12 of 4 slates (2 epochs)"
    assert plan["parameters"].startswith("34,016 trained")
    assert plan["nothing to learn"] == "0.0% without positive, 0.0% without preference"
    assert int(plan["tokens a step"].split()[0].replace(",", "")) > 4 * 5 * 5
    assert "GiB" in plan["memory (estimate)"]
    assert not (tmp_path / "run").exists()


def test_stage_one_and_no_data_to_evaluate_on(settings: Path, tmp_path: Path, checkpoint: Path) -> None:
    """Guards against a stage I that needs other code: pairs, contrastive only."""
    pairs = [
        {"anchor": row["query"], "positive": row["documents"][0], "negative": row["documents"][1]}
        for row in toy_rows(16, seed=4)
    ]
    path = write(tmp_path / "pairs.jsonl", pairs)
    flags = [
        "--listwise_weight",
        "0",
        "--mini_batch_size",
        "8",
        "--max_steps",
        "3",
        "--output_dir",
        str(tmp_path / "one"),
    ]
    main(["--model", str(checkpoint), "--train", path, *flags])
    record = history(tmp_path / "one")
    assert {"loss", "contrastive"} <= record["log"][0].keys()
    assert "listwise" not in record["log"][0]
    assert record["dev"] == []
    assert record["best_step"] is None
    assert record["loss"]["mini_batch_size"] == 8


def test_adapter_is_saved_and_goes_on(settings: Path, tmp_path: Path) -> None:
    """Guards against an adapter folder that holds the base or reloads as another model, and a second adapter on top."""
    main([str(settings), "--lora_rank", "4", "--learning_rate", "1e-2"])
    final = tmp_path / "run" / "final"
    assert (final / "adapter_model.safetensors").exists()
    assert not (final / "model.safetensors").exists()
    model, record = E2Rank(str(final), device="cpu"), history(tmp_path / "run")
    best = E2Rank(str(tmp_path / "run" / f"checkpoint-{record['best_step']}"), device="cpu")
    texts = [row["query"] for row in toy_rows(5)]
    assert (model.encode(texts) == best.encode(texts)).all()
    assert record["after"]["dev_listwise_ndcg@10"] > record["before"]["dev_listwise_ndcg@10"]
    again = [str(settings), "--model", str(final), "--output_dir", str(tmp_path / "again")]
    with pytest.raises(ValueError, match="lora_rank=4 for a model that has an adapter already"):
        main([*again, "--lora_rank", "4"])
    main([*again, "--max_steps", "2"])
    gone_on = E2Rank(str(tmp_path / "again" / "final"), device="cpu")
    changed = {name for name, value in gone_on.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_frozen_documents_and_a_query_weight(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against vectors that are made anew or forgotten, and against training for another vector than ranks."""
    flags = ["--freeze_documents", "true", "--query_weight", "0.25", "--contrastive_weight", "0"]
    flags += ["--guard_weight", "1", "--lora_rank", "4"]
    main([str(settings), *flags, "--dry_run"])
    plan = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    main([str(settings), "--dry_run"])
    texts = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    tokens, more = (int(lines["tokens a step"].split()[0].replace(",", "")) for lines in (plan, texts))
    assert tokens < 0.8 * more
    main([str(settings), *flags])
    (stored,) = (tmp_path / "run" / "documents").iterdir()
    assert Index.load(stored).dimension == 32
    record = history(tmp_path / "run")
    assert record["loss"]["freeze_documents"]
    assert record["loss"]["query_weight"] == 0.25
    assert {"listwise", "guard"} <= record["log"][0].keys()
    assert E2Rank(str(tmp_path / "run" / "final"), device="cpu").listwise.query_weight == 0.25


@pytest.mark.parametrize("bf16", [True, False])
def test_documents_are_embedded_in_the_precision_of_training(
    bf16: bool, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a float32 adapter that takes twice as long before training as within it."""
    precisions = []

    def spy(*args: Any, **options: Any) -> Index:
        precisions.append(torch.is_autocast_enabled("cpu"))
        return document_index(*args, **options)

    monkeypatch.setattr("e2rank_st.training.run.document_index", spy)
    flags = ["--freeze_documents", "true", "--contrastive_weight", "0", "--max_steps", "1"]
    main([str(settings), *flags, "--bf16", str(bf16).lower(), "--use_cpu", "true"])
    assert precisions == [bf16]


def test_adapter_of_the_bundled_base_names_it(settings: Path, tmp_path: Path) -> None:
    """Guards against an adapter that only this machine can load, and one whose base nobody has."""
    flags = ["--lora_rank", "2", "--max_steps", "1", "--output_dir", str(tmp_path / "adapter")]
    main([str(settings), "--model", "bundled-base", *flags])
    folder = tmp_path / "adapter" / "final"
    assert read_adapter_config(folder)["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    model = E2Rank.from_adapter(folder, device="cpu")
    assert (model.listwise.num_prompt_documents, model.listwise.max_prompt_tokens) == (4, 200)
    main([str(settings), "--model", str(folder), "--max_steps", "1", "--output_dir", str(tmp_path / "second")])
    second = tmp_path / "second" / "final"  # a second stage: the same adapter, trained on, and no Hub was asked
    assert history(tmp_path / "second")["earlier"] == history(tmp_path / "adapter")
    assert history(tmp_path / "adapter")["earlier"] is None
    old, new = (read_adapter_config(path) for path in (folder, second))
    assert set(old.pop("target_modules")) == set(new.pop("target_modules"))  # which peft keeps in a set
    assert new == old
    first, then = (load_file(path / WEIGHTS) for path in (folder, second))
    assert 0 < max((then[name] - first[name]).abs().max() for name in first) < 1e-2
    with pytest.raises(ValueError, match="bundled-base"):
        main([str(settings), "--model", "bundled", *flags, "--output_dir", str(tmp_path / "other")])
    with pytest.raises(ValueError, match="model: 'runs/stage1/final' is no folder here and no Hub id"):
        main([str(settings), "--model", "runs/stage1/final", "--output_dir", str(tmp_path / "none")])
    with pytest.raises(OSError):  # a bare name is one of Sentence-Transformers' own
        main([str(settings), "--model", "no-such-model", "--output_dir", str(tmp_path / "none")])


def test_a_stage_does_not_resume_on_another_model(settings: Path, tmp_path: Path) -> None:
    """Guards against vectors and a guard of one first stage in a run that began on another."""
    first = ["--lora_rank", "2", "--max_steps", "1", "--output_dir"]
    for number in (1, 2):
        main([str(settings), *first, str(tmp_path / str(number))])
    (tmp_path / "1" / "final").rename(tmp_path / "stage1")
    second = [str(settings), "--model", str(tmp_path / "stage1"), "--max_steps", "1", "--resume", "true"]
    main(second)
    (tmp_path / "stage1").rename(tmp_path / "gone")
    (tmp_path / "2" / "final").rename(tmp_path / "stage1")
    with pytest.raises(ValueError, match=r"was started with another model in .*stage1"):
        main(second)


def test_a_run_on_the_bundled_model_goes_back_to_its_record(settings: Path, tmp_path: Path) -> None:
    """Guards against data that the bundled model was trained on and a model made from it knows nothing of."""
    main([str(settings), "--model", "bundled", "--max_steps", "1", "--output_dir", str(tmp_path / "mine")])
    earlier = history(tmp_path / "mine")["earlier"]
    assert earlier == json.loads((bundled_folder() / "training.json").read_text(encoding="utf-8"))


def test_resumed_script_ends_as_an_unbroken_one(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a restart that forgets the start: its metrics, its prompts, its data."""
    main([str(settings), "--output_dir", str(tmp_path / "whole")])
    train = E2RankTrainer.training_step

    def dying(self: E2RankTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(E2RankTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            main([str(settings)])
    with pytest.raises(ValueError, match="holds a run already; resume it"):
        main([str(settings)])
    data = tmp_path / "first.jsonl"
    content = data.read_text(encoding="utf-8")
    data.write_text(content.replace("flea", "fly"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"was started with other data \(train\)"):
        main([str(settings), "--resume"])
    data.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"was started with other data \(dev\)"):  # else there is nothing to compare
        main([str(settings), "--resume", "--dev", str(data)])
    main([str(settings), "--resume"])
    whole, resumed = history(tmp_path / "whole"), history(tmp_path / "run")
    assert resumed["resumed_from"] == 4
    assert whole["resumed_from"] is None
    for name in ("log", "dev", "before", "after", "p_values", "best_step", "steps", "data"):
        assert resumed[name] == whole[name], name
    assert "other settings" not in caplog.text


def test_two_processes_follow_one(settings: Path, tmp_path: Path) -> None:
    """Guards against processes that average something else than one process with the whole batch computes."""
    shared = [str(settings), "--max_steps", "6", "--guard_weight", "0.5"]
    main([*shared, "--output_dir", str(tmp_path / "one"), "--dataloader_drop_last"])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "e2rank_st.training.run"]
    flags = ["--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "2"]
    done = subprocess.run(
        [sys.executable, *launch, *shared, *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert two["environment"]["hardware"]["processes"] == 2
    for name in ("loss", "contrastive", "listwise", "guard"):
        curves = [[row[name] for row in record["log"]] for record in (one, two)]
        assert len(curves[0]) == 6
        assert curves[1] == pytest.approx(curves[0], rel=1e-3, abs=2e-4), name
    assert two["after"] == pytest.approx(one["after"], abs=1e-6)
    weights = [E2Rank(str(tmp_path / name / "final"), device="cpu").state_dict() for name in ("one", "two")]
    # Adam divides by the size of gradients, so that where one is nearly 0 its rounding counts.
    assert all(torch.allclose(value, weights[1][name], atol=2e-3) for name, value in weights[0].items())
    assert "dev_listwise" in done.stdout
    assert done.stdout.count("dev_listwise") == 1, "one process speaks"


def test_command(settings: Path, tmp_path: Path) -> None:
    """Guards against a command that takes the flags for its own, or an error with a traceback."""
    done = CliRunner().invoke(app, ["train", str(settings), "--dry-run", "--max_steps", "5"])
    assert done.exit_code == 0, done.output
    assert "5 of 4 slates" in done.stdout
    assert "--num_prompt_documents" in CliRunner().invoke(app, ["train", "--help"]).stdout
    wrong = CliRunner().invoke(app, ["train", str(settings), "--max_step", "5"])
    assert wrong.exit_code == 1
    assert "Unknown setting 'max_step'; did you mean 'max_steps'?" in wrong.stderr
