"""Training: what is learned, and checkpoints that survive whatever ends a run."""

import copy
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from e2rank_st import E2Rank
from e2rank_st.evaluation.evaluator import RerankingEvaluator
from e2rank_st.search.index import Index
from e2rank_st.training.losses import CachedE2RankLoss, E2RankLoss
from e2rank_st.training.trainer import STATE_FILE, UNFINISHED, E2RankTrainer, E2RankTrainingArguments, last_checkpoint
from tests import ROOT
from tests.toy import toy_rows, with_adapter, with_dropout, with_trained_adapter

datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.usefixtures("one_thread")


def toy_data(*numbers: int) -> Any:
    """A source of toy slates for each number."""
    parts = {f"source {index}": toy_rows(number, seed=index) for index, number in enumerate(numbers)}
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})


def toy_trainer(model: E2Rank, folder: Path, data: Any = None, **options: Any) -> E2RankTrainer:
    """A trainer on the CPU: two sources, two epochs of five steps unless told otherwise."""
    evaluator = options.pop("evaluator", None)
    defaults = {
        "per_device_train_batch_size": 3,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 100,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = E2RankTrainingArguments(str(folder), **(defaults | options))
    data = toy_data(9, 6) if data is None else data
    texts = (texts for part in data.values() for texts in part["documents"])
    frozen = (
        Index.build(model, list(dict.fromkeys(text for part in texts for text in part)))
        if args.freeze_documents
        else None
    )
    return E2RankTrainer(model, args, train_dataset=data, evaluator=evaluator, frozen=frozen)


def assert_equal_weights(first: E2Rank, second: E2Rank) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


class StopAt(TrainerCallback):
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: D102
        control.should_training_stop = state.global_step == self.step
        return control


RUNS: dict[str, tuple[Callable[[E2Rank], E2Rank], dict[str, Any]]] = {
    "full": (with_dropout, {"shuffle_prompt": 0.5, "random_prompt_size": 0.5, "documents_per_slate": 4}),
    "adapter, cached, guarded": (with_adapter, {"mini_batch_size": 4, "guard_weight": 1.0}),
    "frozen documents, second stage": (
        with_trained_adapter,
        {"freeze_documents": True, "guard_weight": 1.0, "query_weight": 0.3},
    ),
}


RESUMED = [("full", 3), ("full", 5), ("adapter, cached, guarded", 7), ("frozen documents, second stage", 4)]


def test_nothing_is_trained_after_the_last_step(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against the host's step beyond ``max_steps`` where a run is resumed that had only to be written out."""
    whole = toy_trainer(copy.deepcopy(tiny), tmp_path, max_steps=3)
    whole.train()
    resumed = toy_trainer(copy.deepcopy(tiny), tmp_path, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert_equal_weights(resumed.model, whole.model)


@pytest.mark.parametrize(("run", "step"), RESUMED)
def test_resumed_run_is_the_unbroken_one(tiny: E2Rank, tmp_path: Path, run: str, step: int) -> None:
    """Guards against a resumed run with other batches, draws or dropout, in an epoch and between two; bit for bit."""
    make, options = RUNS[run]
    whole = toy_trainer(make(tiny), tmp_path / "whole", **options)
    whole.train()
    broken = toy_trainer(make(tiny), tmp_path / "broken", save_steps=step, **options)
    broken.add_callback(StopAt(step))
    broken.train()
    assert broken.state.global_step == step < whole.state.global_step == 10
    resumed = toy_trainer(make(tiny), tmp_path / "broken", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_equal_weights(resumed.model, whole.model)
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (resumed, whole)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10


def test_a_worker_changes_nothing(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against a worker that draws otherwise, or is ahead of the step that a run is resumed at; bit for bit."""
    options = RUNS["full"][1] | {"num_train_epochs": 1}
    whole = toy_trainer(with_dropout(tiny), tmp_path / "whole", **options)
    whole.train()
    options["dataloader_num_workers"] = 1
    broken = toy_trainer(with_dropout(tiny), tmp_path / "broken", save_steps=2, **options)
    broken.add_callback(StopAt(2))
    broken.train()
    resumed = toy_trainer(with_dropout(tiny), tmp_path / "broken", **options)
    resumed.train(resume_from_checkpoint=True)
    assert broken.state.global_step == 2 < resumed.state.global_step == whole.state.global_step == 5
    assert_equal_weights(resumed.model, whole.model)


def test_frozen_documents_need_vectors(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against a run that freezes nothing, or trains on vectors of which it knows nothing."""
    trainer = toy_trainer(copy.deepcopy(tiny), tmp_path, freeze_documents=True)
    assert trainer.data_collator.frozen is not None
    with pytest.raises(ValueError, match="freeze_documents=True and no vectors"):
        E2RankTrainer(tiny, trainer.args, train_dataset=trainer.train_dataset)


class Killed(BaseException):
    """Stands for what nobody can catch."""


# What a process does to a file system, as the interpreter tells its audit hooks. Libraries in other languages write
# files unseen, but not under a checkpoint's name: that is given by a rename.
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


class Death:
    """Kills this thread at the n-th change of the file system, and again at every attempt to clean up."""

    def __init__(self) -> None:
        self.at = self.changes = 0  # 0: it lives for ever
        self.thread = threading.get_ident()
        sys.addaudithook(self._hook)  # it cannot be removed again, so it is one for all tests

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.at or threading.get_ident() != self.thread:
            return
        if event in CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            self.changes += 1
            if self.changes >= self.at:
                raise Killed(event)

    def strikes(self, at: int, save: Callable[[], None]) -> bool:
        """Whether saving dies at this change; it does not if there are fewer."""
        self.at, self.changes = at, 0
        try:
            save()
        except Killed:
            return True
        finally:
            self.at = 0
        return False


@pytest.fixture(scope="module")
def death() -> Death:
    return Death()


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a checkpoint, but what tells of paths and times: of those, the names."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): b"" if path.name in (STATE_FILE, "README.md") else path.read_bytes()
        for path in paths
    }


def test_checkpoint_survives_whenever_a_run_dies(tiny: E2Rank, tmp_path: Path, death: Death) -> None:
    """Guards against half a checkpoint under a checkpoint's name, and the last whole one deleted too early."""
    run, start = tmp_path / "run", tmp_path / "start"
    trainer = toy_trainer(copy.deepcopy(tiny), run, save_steps=2, save_total_limit=2, max_steps=4)
    trainer.train()
    shutil.copytree(run, start)
    trainer.state.global_step = 6

    def save() -> None:
        trainer._save_checkpoint(trainer.model, None)

    save()
    whole = {path.name: contents(path) for path in (*start.glob("checkpoint-*"), run / "checkpoint-6")}
    assert [path.name for path in sorted(run.iterdir())] == ["checkpoint-4", "checkpoint-6"], "the premise"
    lasts = []
    for moment in itertools.count(1):
        shutil.rmtree(run)
        shutil.copytree(start, run)
        if not death.strikes(moment, save):
            break
        assert all(contents(path) == whole[path.name] for path in run.glob("checkpoint-*")), moment
        lasts.append(Path(last_checkpoint(run)).name)
    assert lasts == sorted(lasts)
    assert {*lasts} == {"checkpoint-4", "checkpoint-6"}
    assert len(lasts) > 20, "the premise: a save changes many files"
    shutil.rmtree(run)
    shutil.copytree(start, run)
    assert death.strikes(lasts.count("checkpoint-4"), save), "the last moment before it has its name"
    assert (run / UNFINISHED / "checkpoint-6").exists()
    save()  # a run that was resumed comes by here again
    assert [path.name for path in sorted(run.iterdir())] == ["checkpoint-4", "checkpoint-6"]


def test_kill_while_saving(tiny: E2Rank, checkpoint: Path, tmp_path: Path) -> None:
    """Guards against a kill -9 in the middle of a file, which runs no cleaning up."""
    script = f"""
        import sys, time, torch
        from tests.training.test_trainer import toy_trainer
        from e2rank_st import E2Rank
        torch.set_num_threads(1)
        save = torch.save
        def slow(value, path, *args, **kwargs):
            if "checkpoint-4" in str(path) and "optimizer" in str(path):
                open(path, "wb").write(b"half")
                print("in the middle", flush=True)
                time.sleep(600)
            return save(value, path, *args, **kwargs)
        torch.save = slow
        toy_trainer(E2Rank({str(checkpoint)!r}, device="cpu"), {str(tmp_path)!r}, save_steps=2).train()
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert "in the middle" in next(line for line in process.stdout if "middle" in line)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / UNFINISHED / "checkpoint-4").exists(), "the premise: it died while it was saving"
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")
    resumed = toy_trainer(copy.deepcopy(tiny), tmp_path, save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    whole = toy_trainer(copy.deepcopy(tiny), tmp_path / "whole")
    whole.train()
    assert_equal_weights(resumed.model, whole.model)


def test_overfits_one_batch(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against labels, prompts or documents that do not belong together: nothing could be learned by heart."""
    rows = toy_rows(4, seed=3)
    evaluator = RerankingEvaluator.from_slates(_slates(rows), name="same", own_first_stage=True)
    model = copy.deepcopy(tiny)
    before = evaluator(model)
    assert before["same_listwise_ndcg@10"] < 0.9, "the premise"
    data = datasets.DatasetDict({"toy": datasets.Dataset.from_list(rows)})
    trainer = toy_trainer(model, tmp_path, data, per_device_train_batch_size=4, max_steps=25, learning_rate=3e-3)
    trainer.train()
    after = evaluator(model)
    assert after["same_listwise_ndcg@10"] == after["same_embedding_ndcg@10"] == 1.0
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.1 * losses[0]
    assert {"contrastive", "listwise"} <= trainer.state.log_history[0].keys(), "the parts are logged"


class Falling(RerankingEvaluator):
    """Whose first measurement is the best."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: D102
        steps = args[3] if len(args) > 3 else kwargs["steps"]
        return {"toy_listwise_ndcg@10": 1 / steps}


def falling_trainer(model: E2Rank, folder: Path, **options: Any) -> E2RankTrainer:
    """A trainer that finds the first of its checkpoints the best."""
    defaults = {
        "evaluator": Falling.from_slates(_slates(toy_rows(6, seed=9)), name="toy"),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "toy_listwise_ndcg@10",
        "greater_is_better": True,
    }
    return toy_trainer(model, folder, **(defaults | options))


def test_best_checkpoint_is_loaded_and_kept(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against a result that is the last checkpoint, and a best one that is deleted as an old one."""
    trainer = falling_trainer(copy.deepcopy(tiny), tmp_path)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-2"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert_equal_weights(trainer.model, E2Rank(str(tmp_path / "checkpoint-2"), device="cpu"))
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises((OSError, ValueError)):  # the host would log this and go on with the last weights
        trainer._load_best_model()


def test_best_checkpoint_is_found_where_the_run_is_now(
    tiny: E2Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a run that was moved, or is named by another path, whose best checkpoint is forgotten."""
    broken = falling_trainer(copy.deepcopy(tiny), tmp_path / "then")
    broken.add_callback(StopAt(4))
    broken.train()
    (tmp_path / "then").rename(tmp_path / "now")
    monkeypatch.chdir(tmp_path)
    resumed = falling_trainer(copy.deepcopy(tiny), Path("now"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "now" / "checkpoint-4"))
    assert resumed.best_step == 2
    assert sorted(path.name for path in Path("now").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-2"]
    assert_equal_weights(resumed.model, E2Rank("now/checkpoint-2", device="cpu"))
    shutil.rmtree("now/checkpoint-2")
    with pytest.raises(ValueError, match=r"best checkpoint so far, .*checkpoint-2, is gone"):
        falling_trainer(copy.deepcopy(tiny), Path("now")).train(resume_from_checkpoint=True)


def test_best_step_is_that_of_a_checkpoint(tiny: E2Rank, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against a record that names a step whose weights nobody kept: not every evaluation has a checkpoint."""
    trainer = falling_trainer(copy.deepcopy(tiny), tmp_path, save_steps=4)
    assert "save_steps=4 and eval_steps=2" in caplog.text
    trainer.train()
    assert trainer.state.best_global_step == 2, "the premise"
    assert trainer.best_step is None
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-8"]


def test_single_source_batches_by_default(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against negatives of other sources, and against the host's samplers where the arguments name them."""
    trainer = toy_trainer(copy.deepcopy(tiny), tmp_path)
    rows = list(trainer.get_train_dataloader().batch_sampler)
    assert all(len({row < 9 for row in batch}) == 1 for batch in rows)
    host = toy_trainer(copy.deepcopy(tiny), tmp_path, batch_sampler="no_duplicates")
    assert type(host.get_train_dataloader().batch_sampler).__name__ == "ProportionalBatchSampler"


def test_arguments_make_the_loss_and_the_collator(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against settings that are read and forgotten."""
    plain = toy_trainer(tiny, tmp_path, temperature=0.1, listwise="lambda", listwise_scale=5.0, contrastive_weight=0.5)
    assert type(plain.loss) is E2RankLoss
    expected = {"temperature": 0.1, "listwise": "lambda", "listwise_scale": 5.0, "contrastive_weight": 0.5}
    assert expected.items() <= plain.loss.get_config_dict().items()
    cached = toy_trainer(tiny, tmp_path, mini_batch_num_tokens=500, listwise_weight=0, documents_per_slate=3, seed=5)
    assert type(cached.loss) is CachedE2RankLoss
    assert cached.loss.mini_batch_num_tokens == 500
    assert cached.data_collator.columns == ("query", "documents")
    assert (cached.data_collator.documents_per_slate, cached.data_collator.seed) == (3, 5)


@pytest.mark.parametrize("make", [copy.deepcopy, with_adapter, with_trained_adapter])
def test_guard_looks_at_the_model_before_training(
    tiny: E2Rank, tmp_path: Path, make: Callable[[E2Rank], E2Rank]
) -> None:
    """Guards against a reference that is trained along, draws dropout, or leaves the adapter switched off."""
    model = make(tiny)
    before = copy.deepcopy(model).eval()
    trainer = toy_trainer(model, tmp_path, guard_weight=1.0, max_steps=4, learning_rate=1e-2)
    trainer.train()
    guards = [row["guard"] for row in trainer.state.log_history if "guard" in row]
    assert guards[-1] > guards[0]
    assert guards[-1] > 1e-3
    batch = trainer.data_collator(toy_rows(2))
    features = {name: batch[f"query_{name}"] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        kept = trainer.loss.reference(dict(features))["sentence_embedding"]
        torch.testing.assert_close(kept, before(dict(features))["sentence_embedding"])
        moved = model.eval()(dict(features))["sentence_embedding"]
    assert not torch.allclose(kept, moved, atol=1e-3)


def test_accumulation_and_bfloat16_train(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against mixed precision or accumulated gradients that the loss does not bear; weights stay float32."""
    model = copy.deepcopy(tiny)
    options = {"bf16": True, "gradient_accumulation_steps": 2, "activation_checkpointing": True}
    trainer = toy_trainer(model, tmp_path, **options)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_evaluation_before_training(tiny: E2Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against processes that train each for itself: the host takes an evaluated model for a wrapped one."""
    model = copy.deepcopy(tiny)
    trainer = toy_trainer(model, tmp_path, evaluator=RerankingEvaluator.from_slates(_slates(toy_rows(2))))
    trainer.evaluate()
    assert vars(model)["_is_accelerate_prepared"], "the premise"
    seen: list[bool] = []
    host = type(trainer).__mro__[1]
    monkeypatch.setattr(host, "train", lambda *_, **__: seen.append("_is_accelerate_prepared" in vars(model)))
    trainer.train()
    assert seen == [False]


def test_nothing_to_resume_from(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against a run that was to be resumed and starts anew."""
    with pytest.raises(ValueError, match="There is no checkpoint in"):
        toy_trainer(tiny, tmp_path).train(resume_from_checkpoint=True)


def _slates(rows: list[dict[str, Any]]) -> list[Any]:
    from e2rank_st.data.slates import Slate

    return [Slate(*(row[name] for name in ("query", "documents", "labels", "gold"))) for row in rows]
