"""Runs that resume, whatever ended them, and the best checkpoint of a run."""

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
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from e2rank_st import E2Rank
from e2rank_st.evaluation.evaluator import RerankingEvaluator
from e2rank_st.training.resuming import MARKER, CheckpointMarker, complete_checkpoints, last_checkpoint
from e2rank_st.training.trainer import STATE_FILE, E2RankTrainer
from tests import ROOT
from tests.toy import toy_rows, with_adapter, with_dropout, with_trained_adapter
from tests.training.trainers import as_slates, assert_equal_weights, logged, toy_trainer


class StopAt(TrainerCallback):
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: D102
        control.should_training_stop = state.global_step == self.step
        return control


def with_listwise(make: Callable[[E2Rank], E2Rank], model: E2Rank, **changes: Any) -> E2Rank:
    model = make(model)
    model.replace_listwise(**changes)
    return model


RUNS: dict[str, tuple[Callable[[E2Rank], E2Rank], dict[str, Any]]] = {
    "full": (with_dropout, {"random_prompt_size": 0.5, "documents_per_slate": 4}),
    "adapter, cached, guarded": (with_adapter, {"loss": {"mini_batch_size": 8, "guard_weight": 1.0}}),
    "frozen documents, second stage": (
        lambda model: with_listwise(with_trained_adapter, model, query_weight=0.3),
        {"loss": {"freeze_documents": True, "guard_weight": 1.0}},
    ),
}


@pytest.fixture(scope="module")
def whole(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], E2RankTrainer]:
    """Runs of ten steps that nothing interrupts, by name."""

    @cache
    def trained(run: str) -> E2RankTrainer:
        make, options = RUNS[run]
        trainer = toy_trainer(make(tiny), tmp_path_factory.mktemp("whole"), **options)
        trainer.train()
        assert trainer.state.global_step == len(logged(trainer)) == 10, "the premise"
        return trainer

    return trained


def assert_resumes(run: str, tiny: E2Rank, folder: Path, whole: E2RankTrainer) -> None:
    make, options = RUNS[run]
    resumed = toy_trainer(make(tiny), folder, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_equal_weights(resumed.model, whole.model)
    assert logged(resumed) == logged(whole)


@pytest.mark.parametrize(
    ("run", "step", "workers"),
    [
        ("full", 3, 1),
        ("full", 5, 0),
        ("adapter, cached, guarded", 7, 0),
        ("frozen documents, second stage", 4, 0),
    ],
)
def test_resumed_run_is_the_unbroken_one(
    tiny: E2Rank, tmp_path: Path, whole: Callable[[str], E2RankTrainer], run: str, step: int, workers: int
) -> None:
    """Guards against a resumed run with other batches, draws or dropout, in an epoch and between two; bit for bit.

    Also against a worker that draws otherwise, or is ahead of the step that a run is resumed at.
    """
    make, options = RUNS[run]
    broken = toy_trainer(make(tiny), tmp_path, save_steps=step, dataloader_num_workers=workers, **options)
    broken.add_callback(StopAt(step))
    broken.train()
    assert broken.state.global_step == step
    assert_resumes(run, tiny, tmp_path, whole(run))


class Killed(BaseException):
    """Stands for an end that nobody can catch."""


# Changes of the file system, as the interpreter tells its audit hooks. Libraries in other languages write files unseen.
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
    """All files of a checkpoint but those of a killed writer; of those that tell of paths and times, the names."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: b"" if path.name in (STATE_FILE, "README.md") else path.read_bytes()
        for name, path in paths.items()
        if name != MARKER and not name.startswith(".")
    }


def test_last_checkpoint_is_whole_whenever_a_run_dies(tiny: E2Rank, tmp_path: Path, death: Death) -> None:
    """Guards against a run that resumes from a checkpoint that is half written or half deleted, or from none.

    Checkpoint 2 is the best, so 4 is the one to go.
    """
    run, start = tmp_path / "run", tmp_path / "start"
    trainer = falling_trainer(copy.deepcopy(tiny), run, max_steps=4)
    trainer.train()
    shutil.copytree(run, start)
    trainer.state.global_step = 6

    def save() -> None:
        # As the training loop does at the end of a step.
        trainer.callback_handler.on_step_end(trainer.args, trainer.state, trainer.control)
        trainer._save_checkpoint(trainer.model, None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    save()
    whole = {path.name: contents(path) for path in (*start.glob("checkpoint-*"), run / "checkpoint-6")}
    assert [path.name for path in complete_checkpoints(run)] == ["checkpoint-2", "checkpoint-6"], "the premise"
    lasts = []
    for moment in itertools.count(1):
        shutil.rmtree(run)
        shutil.copytree(start, run)
        if not death.strikes(moment, save):
            break
        last = complete_checkpoints(run)[-1]
        assert contents(last) == whole[last.name], moment
        assert (run / "checkpoint-2" / MARKER).exists(), moment
        lasts.append(last.name)
    assert len(lasts) > 20, "the premise: a save changes many files"
    names = [name for name, _ in itertools.groupby(lasts)]
    assert names == ["checkpoint-4", "checkpoint-6"]
    # A run that was started anew writes over a checkpoint that is complete.
    assert [path.name for path in complete_checkpoints(run)] == ["checkpoint-2", "checkpoint-6"]
    assert death.strikes(5, save)
    assert complete_checkpoints(run)[-1].name == "checkpoint-2"
    save()
    assert contents(run / "checkpoint-6") == whole["checkpoint-6"]
    assert complete_checkpoints(run)[-1].name == "checkpoint-6"


def test_kill_while_saving(
    tiny: E2Rank, checkpoint: Path, tmp_path: Path, whole: Callable[[str], E2RankTrainer]
) -> None:
    """Guards against a kill -9 in the middle of a file, which runs no cleaning up."""
    script = f"""
        import time, torch
        from tests.training.test_resuming import RUNS, toy_trainer
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
        make, options = RUNS["full"]
        toy_trainer(make(E2Rank({str(checkpoint)!r}, device="cpu")), {str(tmp_path)!r}, save_steps=2, **options).train()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert "in the middle" in next(line for line in process.stdout if "middle" in line)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "checkpoint-4" / "model.safetensors").exists(), "the premise: it died while it was saving"
    assert complete_checkpoints(tmp_path)[-1] == tmp_path / "checkpoint-2"
    assert_resumes("full", tiny, tmp_path, whole("full"))


# --- the best checkpoint ----------------------------------------------------------------------------------------------


class Falling(RerankingEvaluator):
    """Whose first measurement is the best."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: D102
        steps = args[3] if len(args) > 3 else kwargs["steps"]
        return {"toy_listwise_ndcg@10": 1 / steps}


def falling_trainer(model: E2Rank, folder: Path, **options: Any) -> E2RankTrainer:
    """A trainer that finds the first of its checkpoints the best."""
    defaults = {
        "evaluator": Falling.from_slates(as_slates(toy_rows(6, seed=9)), name="toy"),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "toy_listwise_ndcg@10",
        "greater_is_better": True,
    }
    return toy_trainer(model, folder, **(defaults | options))


@pytest.fixture(scope="module")
def moved(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, E2RankTrainer]:
    """A run that was broken off at step 4, moved, named by a relative path, and resumed to step 8; and its trainer."""
    folder = tmp_path_factory.mktemp("moved")
    broken = falling_trainer(copy.deepcopy(tiny), folder / "then", max_steps=8)
    broken.add_callback(StopAt(4))
    broken.train()
    (folder / "then").rename(folder / "now")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        resumed = falling_trainer(copy.deepcopy(tiny), Path("now"), max_steps=8)
        resumed.train(resume_from_checkpoint=str(folder / "now" / "checkpoint-4"))
    return folder / "now", resumed


def test_best_checkpoint_is_loaded_and_kept(moved: tuple[Path, E2RankTrainer]) -> None:
    """Guards against a result that is the last checkpoint, and a best one that is deleted or forgotten."""
    folder, resumed = moved
    assert resumed.best_step == 2
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-2", "checkpoint-8"]
    assert_equal_weights(resumed.model, E2Rank(str(folder / "checkpoint-2"), device="cpu"))


@pytest.mark.parametrize("scores", [(0.9, 0.5, 0.4), (0.5, 0.4, 0.6), (0.4, 0.5, 0.6)])
def test_a_run_that_dies_before_the_mark_resumes(tiny: E2Rank, tmp_path: Path, scores: tuple[float, ...]) -> None:
    """Guards against a best checkpoint that is deleted while its successor is not complete: nothing could resume."""
    measured = dict(zip((2, 4, 6), scores, strict=True))

    def trainer(folder: Path) -> E2RankTrainer:
        made = falling_trainer(copy.deepcopy(tiny), folder, max_steps=6, save_total_limit=2)
        made.evaluator = lambda *args, **kwargs: {
            "toy_listwise_ndcg@10": measured[args[3] if len(args) > 3 else kwargs["steps"]]
        }
        return made

    whole, broken, resumed = trainer(tmp_path / "whole"), trainer(tmp_path / "run"), trainer(tmp_path / "run")
    whole.train()
    (marker,) = [call for call in broken.callback_handler.callbacks if isinstance(call, CheckpointMarker)]
    mark = marker.on_save

    def dying(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            raise Killed
        mark(args, state, control, **kwargs)

    marker.on_save = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        broken.train()
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-4"]
    resumed.train(resume_from_checkpoint=True)
    assert resumed.best_step == whole.best_step
    assert_equal_weights(resumed.model, whole.model)


def test_nothing_is_trained_after_the_last_step(
    tiny: E2Rank, tmp_path: Path, moved: tuple[Path, E2RankTrainer]
) -> None:
    """Guards against a step beyond ``max_steps`` where a run is resumed that had only to be written out.

    Also against a best checkpoint that cannot be loaded, after which the run would end with the last weights, and
    against a run that was to be resumed and starts anew.
    """
    shutil.copytree(moved[0], tmp_path / "run")
    resumed = falling_trainer(copy.deepcopy(tiny), tmp_path / "run", max_steps=8)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert_equal_weights(resumed.model, moved[1].model)
    best = tmp_path / "run" / "checkpoint-2"
    (best / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"checkpoint-2 is damaged: model\.safetensors has changed\. .* the best one"):
        falling_trainer(resumed.model, tmp_path / "run", max_steps=8).train(resume_from_checkpoint=True)
    shutil.rmtree(best)
    with pytest.raises(ValueError, match=r"best checkpoint so far, .*checkpoint-2, is gone"):
        falling_trainer(resumed.model, tmp_path / "run", max_steps=8).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="has no complete checkpoint to resume from"):
        toy_trainer(tiny, tmp_path / "none").train(resume_from_checkpoint=True)


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [missing, truncated, flipped])
def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, moved: tuple[Path, E2RankTrainer], damage: Callable[[Path], None]
) -> None:
    """Guards against a run that resumes without its schedule, optimizer or draws, and ends with other weights.

    Also against an older checkpoint that is taken in its place: progress would be lost in silence.
    """
    shutil.copytree(moved[0], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoint-8"
    assert last_checkpoint(folder.parent) == folder, "the premise"
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {"scheduler.pt", "optimizer.pt", "rng_state.pth", STATE_FILE, "model.safetensors"} < files.keys()
    for name, path in files.items():
        if path.name == MARKER or path.suffix == ".md":
            continue
        whole = path.read_bytes()
        damage(path)
        problem = "is missing" if damage is missing else "has changed"
        with pytest.raises(ValueError, match=f"checkpoint-8 is damaged: {name} {problem}.* resume from checkpoint-2"):
            last_checkpoint(folder.parent)
        path.write_bytes(whole)
    assert last_checkpoint(folder.parent) == folder
    files["README.md"].write_text("words for people", encoding="utf-8")
    assert last_checkpoint(folder.parent) == folder
    shutil.rmtree(folder)
    assert last_checkpoint(folder.parent) == folder.parent / "checkpoint-2"


def test_trainers_refuse_a_damaged_checkpoint(
    tiny: E2Rank, tmp_path: Path, moved: tuple[Path, E2RankTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a check that one way to resume goes round, and a checkpoint that is skipped without a word."""
    shutil.copytree(moved[0], tmp_path / "run")
    last = tmp_path / "run" / "checkpoint-8"
    trainer = falling_trainer(copy.deepcopy(tiny), last.parent, max_steps=10)
    (last / "scheduler.pt").unlink()
    for resume in (True, str(last)):
        with pytest.raises(ValueError, match=r"checkpoint-8 is damaged: scheduler\.pt is missing"):
            trainer.train(resume_from_checkpoint=resume)
    (last / MARKER).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-8 is not complete, since it has no complete\.json"):
        trainer.train(resume_from_checkpoint=str(last))
    assert last_checkpoint(last.parent) == last.parent / "checkpoint-2"
    assert "checkpoint-8 not written to the end; the run goes on from" in caplog.text


def test_a_checkpoint_of_weights_alone_is_refused(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against a fresh optimizer where a run was told to save the model only."""
    options = {"max_steps": 2, "save_steps": 1, "save_only_model": True}
    toy_trainer(copy.deepcopy(tiny), tmp_path, **options).train()
    with pytest.raises(ValueError, match=r"checkpoint-2 is damaged: rng_state\*\.pth is missing"):
        toy_trainer(copy.deepcopy(tiny), tmp_path, **options).train(resume_from_checkpoint=True)


def test_best_step_is_that_of_a_checkpoint(tiny: E2Rank, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against a record that names a step whose weights nobody kept: not every evaluation has a checkpoint."""
    trainer = falling_trainer(copy.deepcopy(tiny), tmp_path, save_steps=4, max_steps=5)
    assert "save_steps=4 and eval_steps=2" in caplog.text
    trainer.train()
    assert trainer.state.best_global_step == 2, "the premise"
    assert trainer.best_step is None
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-5"]
