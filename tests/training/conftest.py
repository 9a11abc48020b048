"""What the tests of training share: settings with their data, and runs that are made once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ROOT
from tests.toy import toy_rows


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost a tiny model more than they save, and let sums differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Stage II on 24 slates of two sources, in 12 steps; a test names the output folder."""
    yaml = pytest.importorskip("yaml")
    folder = tmp_path_factory.mktemp("settings")
    values = {
        "model": str(checkpoint),
        "train": [
            write(folder / "first.jsonl", toy_rows(16, seed=1, source="first")),
            {"path": write(folder / "second.jsonl", toy_rows(20, seed=2)), "name": "second", "limit": 8},
        ],
        "dev": [write(folder / "dev.jsonl", toy_rows(12, seed=3))],
        "num_prompt_documents": 4,
        "max_prompt_tokens": 200,
        "candidate_order": "similarity",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "eval_steps": 4,
        "save_steps": 4,
    }
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


SHARED = ("--max_steps", "6", "--guard_weight", "0.5")  # of the run that one and two processes make


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory, settings: Path) -> Path:
    """A folder with the work of two processes: losses, a run, and what was printed."""
    folder = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = [str(settings), *SHARED, "--output_dir", str(folder / "run"), "--per_device_train_batch_size", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.training.two_processes", str(folder), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "stdout").write_text(done.stdout, encoding="utf-8")
    return folder
