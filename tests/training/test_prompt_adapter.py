"""Training of a prompt adapter, from settings to a folder that names its base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from e2rank_st import E2Rank
from e2rank_st.adapter_e2rank import ADAPTER_WEIGHTS
from e2rank_st.folders.check import HOME
from e2rank_st.training.run import main, prepare
from e2rank_st.training.settings import parse_settings
from tests.toy import THINGS, toy_rows
from tests.training.conftest import write

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("matplotlib")

TEXTS = [f"about {thing}" for thing in THINGS]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    rows = [toy_rows(16, seed, name) for seed, name in enumerate(("a", "b"))]
    sources = [write(folder / f"{part[0]['source']}.jsonl", part) for part in rows]
    dev = write(folder / "dev.jsonl", rows[0] + rows[1])  # learned by heart: random document vectors teach no more
    named = {
        "model": str(checkpoint), "prompt_adapter": "true", "max_prompt_tokens": "200", "num_prompt_documents": "4",
        "candidate_order": "similarity", "query_weight": "0.25", "lora_rank": "8", "learning_rate": "1e-2",
        "per_device_train_batch_size": "8", "max_steps": "40", "eval_steps": "20", "save_steps": "20", "seed": "1",
    }  # fmt: skip
    return [*(f"--{name}={value}" for name, value in named.items()), "--train", *sources, "--dev", dev]


@pytest.fixture(scope="module")
def run(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    main([*flags, "--output_dir", str(folder)])
    return folder


def record(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "final" / "training.json").read_text(encoding="utf-8"))
    return values


def test_prompts_learn_and_vectors_stay(run: Path, tiny: E2Rank) -> None:
    """Guards against training that does nothing, or that changes vectors which people have stored."""
    result = record(run)
    before, after = result["before"], result["after"]
    assert after["dev_listwise_ndcg@10"] > before["dev_listwise_ndcg@10"] + 0.05
    assert after["dev_embedding_ndcg@10"] == before["dev_embedding_ndcg@10"]
    assert all(row["dev_embedding_ndcg@10"] == before["dev_embedding_ndcg@10"] for row in result["dev"])
    model = E2Rank(str(run / "final"), device="cpu")
    for task in ("encode", "encode_query", "encode_document"):
        assert (getattr(model, task)(TEXTS) == getattr(tiny, task)(TEXTS)).all()
    assert model.rerank(TEXTS[0], TEXTS) != tiny.rerank(TEXTS[0], TEXTS)


def test_the_result_is_small_and_names_its_base(run: Path, checkpoint: Path, tiny: E2Rank) -> None:
    """Guards against a copy of the base beside the adapter, and against one that nobody can find."""
    final = run / "final"
    assert {path.relative_to(final).as_posix() for path in final.rglob("*") if path.is_file()} == {
        f"{HOME}/{ADAPTER_WEIGHTS}", f"{HOME}/adapter_config.json", f"{HOME}/config.json", "training.json",
        "curves.png",
    }  # fmt: skip
    config = json.loads((final / HOME / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(checkpoint)
    base = {"dimension": 32, "pooling": "lasttoken", "max_tokens": 1024, "positions": 32_768}
    assert record(run)["model"] == {**base, "prompts": tiny.prompts}, "the card tells it without the base"


def test_the_kept_checkpoint_is_the_result(run: Path) -> None:
    """Guards against the last adapter under the name of the best one: both are measured again from their files."""
    parsed = parse_settings([*flags_of(run), "--output_dir", str(run.parent / "again")])
    (evaluator,) = prepare(parsed).evaluators
    measured = evaluator(E2Rank(str(run / "final"), device="cpu"))
    assert measured["dev_listwise_ndcg@10"] == pytest.approx(record(run)["after"]["dev_listwise_ndcg@10"], abs=1e-6)


def flags_of(run: Path) -> list[str]:
    told = record(run)["settings"]
    return ["--model", told["model"], "--prompt_adapter=true", "--train", *told["train"], "--dev", *told["dev"]]


def test_vectors_are_shared_by_runs(run: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against hours of embedding in every run: a second one embeds no document and no query."""
    embedded: list[str] = []
    for task in ("encode_query", "encode_document"):
        monkeypatch.setattr(E2Rank, task, lambda _, texts, **options: embedded.extend(texts))
    made = prepare(parse_settings([*flags, "--learning_rate=1e-3", "--output_dir", str(run.parent / "two")]))
    assert not embedded
    assert len(list((run.parent / "vectors").iterdir())) == 6, "documents and queries of two sources and a dev set"
    trained = [name for name, weight in made.trainer.model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    base = {name: weight.data_ptr() for name, weight in made.model.named_parameters()}
    shared = {weight.data_ptr() for weight in made.trainer.model.parameters()}
    assert set(base.values()) <= shared, "the weights of the base are there once"


def test_a_step_embeds_one_prompt_a_slate(flags: list[str], tmp_path: Path) -> None:
    """Guards against queries and documents that are embedded again in each step."""
    made = prepare(parse_settings([*flags, "--vectors", str(tmp_path / "v"), "--output_dir", str(tmp_path / "run")]))
    rows: list[int] = []
    made.trainer.model[0].register_forward_pre_hook(lambda _, given: rows.append(len(given[0]["input_ids"])))
    batch = next(iter(made.trainer.get_train_dataloader()))
    made.trainer.model.train()
    made.trainer.compute_loss(made.trainer.model, batch).backward()
    assert rows == [8]


def test_a_killed_run_goes_on(flags: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against another result after a resume."""
    folder = tmp_path / "run"
    stopped = [*flags, "--vectors", str(run.parent / "vectors"), "--output_dir", str(folder)]

    class Killed(Exception):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("e2rank_st.training.run._save", kill)
        main(stopped)
    shutil.rmtree(folder / "checkpoint-40")
    main([*stopped, "--resume", "true"])
    ours, theirs = (E2Rank(str(path / "final"), device="cpu").listwise.adapter for path in (folder, run))
    assert record(folder)["resumed_from"] == 20
    assert all(torch.equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--contrastive_weight=1"], "contrastive_weight=1.0 with prompt_adapter"),
        (["--guard_weight=2"], "guard_weight=2.0 with prompt_adapter"),
        (["--freeze_documents=false"], "freeze_documents=False with prompt_adapter"),
    ],
    ids=["contrastive", "guard", "documents"],
)
def test_what_does_not_go_with_it(flags: list[str], tmp_path: Path, extra: list[str], message: str) -> None:
    """Guards against a setting that has no effect, or that would change the vectors."""
    with pytest.raises(ValueError, match=message):
        main([*flags, *extra, "--output_dir", str(tmp_path)])


def test_a_second_adapter_is_refused(run: Path, flags: list[str], tmp_path: Path) -> None:
    """Guards against an adapter on top of another, which no file could describe."""
    with pytest.raises(ValueError, match=r"has a prompt adapter, which cannot be trained further. Give its base"):
        main([*flags, "--model", str(run / "final"), "--output_dir", str(tmp_path)])
