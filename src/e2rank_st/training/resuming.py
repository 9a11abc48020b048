"""The checkpoints of a run → the newest complete one, from which a killed run resumes.

Transformers' trainer writes a checkpoint file by file. A run can be killed in between. So a complete checkpoint is
marked: once all processes have saved, the main process writes :data:`MARKER` into its folder, with the size of each
file. A checkpoint is complete if all these files are there, each of its size. Old checkpoints are deleted after that:
transformers' trainer would do it before, and a run that dies then could have lost its best checkpoint.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from e2rank_st.storage import read_json, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["MARKER", "CheckpointMarker", "complete_checkpoints"]

MARKER = "complete.json"


class CheckpointMarker(TrainerCallback):
    """Marks each checkpoint as complete, then deletes the oldest above the limit.

    Args:
        accelerator: The trainer's, to wait for the other processes.
        limit: Most checkpoints to keep; None for all. The last and the best one stay in any case.
    """

    def __init__(self, accelerator: Accelerator, limit: int | None) -> None:
        self.accelerator = accelerator
        self.limit = limit

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Take the mark from a checkpoint of another run that this step may overwrite."""
        if args.should_save:
            (_folder(args, state) / MARKER).unlink(missing_ok=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Mark a checkpoint that all processes have written their parts of."""
        self.accelerator.wait_for_everyone()
        if args.should_save:
            folder = _folder(args, state)
            write_json(folder / MARKER, _sizes(folder))
            for surplus in self._surplus(folder, state.best_model_checkpoint):
                (surplus / MARKER).unlink(missing_ok=True)  # first: half a checkpoint must not look complete
                shutil.rmtree(surplus)

    def _surplus(self, last: Path, best: str | None) -> list[Path]:
        checkpoints = _by_step(last.parent)
        number = 0 if self.limit is None else max(len(checkpoints) - self.limit, 0)
        kept = {last.name, Path(best or "").name}
        return [path for path in checkpoints if path.name not in kept][:number]


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir), f"checkpoint-{state.global_step}")


def _sizes(folder: Path) -> dict[str, int]:
    """The size of each file in a folder, in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _is_complete(folder: Path) -> bool:
    if not (folder / MARKER).is_file():
        return False
    written: dict[str, int] = read_json(folder / MARKER)
    return written.items() <= _sizes(folder).items()


def complete_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the complete checkpoints in the output folder of a run: their folders, the oldest step first.

    Raises:
        OSError: A folder cannot be read.
    """
    return [path for path in _by_step(Path(folder)) if _is_complete(path)]


def _by_step(folder: Path) -> list[Path]:
    """All checkpoints in a folder, complete or not, the oldest step first."""
    named = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    steps = {path: int(step) for path, step in named.items() if step.isdecimal()}
    return sorted(steps, key=lambda path: steps[path])
