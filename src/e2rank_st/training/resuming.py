"""The checkpoints of a run → the newest complete one, from which a killed run resumes.

Transformers' trainer writes a checkpoint file by file. A run can be killed in between. So a complete checkpoint is
marked: once all processes have saved, the main process writes :data:`MARKER` into its folder, with the hash of each
file. Old checkpoints are deleted after that: transformers' trainer would do it before, and a run that dies then could
have lost its best checkpoint.

A marked checkpoint whose files are missing or changed is refused. Transformers' trainer would go on without the state
of the optimizer, of the schedule or of random draws, and end with different weights.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from e2rank_st.storage import file_sha256, read_json, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["MARKER", "CheckpointMarker", "check_checkpoint", "complete_checkpoints", "last_checkpoint"]

logger = logging.getLogger(__name__)

MARKER = "complete.json"
NEEDED = ("trainer_state.json", "rng_state*.pth")  # whichever way the weights were saved


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
            write_json(folder / MARKER, _hashes(folder))
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


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of each file of a checkpoint. Its card is only for people, and a hidden file is a killed writer's."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    kept = {name: path for name, path in names.items() if not name.startswith(".") and path.suffix != ".md"}
    return {name: file_sha256(kept[name]) for name in sorted(kept) if name != MARKER}


def complete_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the checkpoints in the output folder of a run that were written to their end, the oldest step first."""
    return [path for path in _by_step(Path(folder)) if (path / MARKER).is_file()]


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Find the checkpoint to resume from, or None if no save of the run has come to its end.

    Raises:
        OSError: A file cannot be read.
        ValueError: Its files are missing or have changed. An older one is not taken instead: that is the user's choice.
    """
    found, steps = complete_checkpoints(folder), _by_step(Path(folder))
    if not found:
        return None
    if skipped := [path.name for path in steps[steps.index(found[-1]) + 1 :]]:
        logger.warning("%s not written to the end; the run goes on from %s.", ", ".join(skipped), found[-1])
    older = f"resume from {found[-2].name}" if len(found) > 1 else "start anew"
    check_checkpoint(found[-1], f"Put back what is missing, or delete this folder to {older}.")
    return found[-1]


def check_checkpoint(folder: Path, advice: str) -> None:
    """Refuse a checkpoint from which a run would resume with different weights.

    Args:
        folder: The checkpoint.
        advice: What the user may do.

    Raises:
        OSError: A file cannot be read.
        ValueError: It was not written to its end, or a file is missing or has changed.
    """
    if not (folder / MARKER).is_file():
        raise ValueError(f"{folder} is not complete, since it has no {MARKER}. {advice}")
    written, present = read_json(folder / MARKER), _hashes(folder)
    if not isinstance(written, dict):
        raise ValueError(f"{folder / MARKER} is not a list of files. {advice}")
    missing = sorted(written.keys() - present.keys())
    missing += [name for name in NEEDED if not any(Path(path).match(name) for path in written)]
    changed = sorted(name for name in written.keys() & present.keys() if written[name] != present[name])
    if missing or changed:
        problems = [f"{name} is missing" for name in missing] + [f"{name} has changed" for name in changed]
        raise ValueError(f"{folder} is damaged: {', '.join(problems)}. {advice}")


def _by_step(folder: Path) -> list[Path]:
    """All checkpoints in a folder, complete or not, the oldest step first."""
    named = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    steps = {path: int(step) for path, step in named.items() if step.isdecimal()}
    return sorted(steps, key=lambda path: steps[path])
