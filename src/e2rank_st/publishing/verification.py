"""A build and its source model → checks in fresh processes, each of them like a stranger's machine.

The processes find the build under its Hub id, in a cache made for them. The network is off, and only
Sentence-Transformers and its requirements can be imported. A build that works there works for everybody who downloads
the repository.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from e2rank_st.model import E2Rank
from e2rank_st.publishing.build import Build
from e2rank_st.publishing.contents import check_contents
from e2rank_st.publishing.probe import rank

__all__ = ["Check", "verify"]

OWN_PACKAGE = "e2rank_st"
QUERIES = ["how long do fleas live", "Was kostet ein Brötchen? \N{BREAD}"]
DOCUMENTS = [
    "Fleas live about one hundred days; without a host they die within a few.",
    "Bread rises because yeast makes gas.",
    "",
    "An end of text in a text, <|endoftext|> or [SEP], is not its end.",
    "  Iron melts at 1538 degrees Celsius.\n\n",
    "跳蚤可以活一百天。",
    "A long document is cut by its number of tokens. " * 40,
]
TOLERANCE = 1e-6
# Stock modules pool in the model's own precision, which has few digits below float32.
ROUGH_TOLERANCE = 2e-2
# The checks of each process, in order. The first one may not run code, and only the last one may import this package.
PROCESSES: tuple[dict[str, str], ...] = (
    {"embedding": "embedding revision, without a flag", "plain": "AutoTokenizer, AutoModel and pooling"},
    {"remote": "main revision, trust_remote_code=True", "again": "saved and loaded again; Python of the cards"},
    {"blocks": "Python of the cards, with this package"},
)
SMALL = 2 * 2**30  # bytes of a model that fits into memory several times
TIMEOUT = 3600.0  # seconds for one process; an 8B model on a CPU takes its time


@dataclass(frozen=True)
class Check:
    """A check's outcome.

    Attributes:
        name: The thing that was checked.
        difference: Largest difference to the source model, if vectors or scores were compared.
        problem: Why the check failed; empty if it passed.
    """

    name: str
    difference: float | None = None
    problem: str = ""


def verify(build: Build, model: E2Rank) -> list[Check]:
    """Check a build as a stranger would use it.

    Args:
        build: The build.
        model: The source model, on the CPU.

    Returns:
        All checks, the failed ones with their problem.

    Raises:
        OSError: A process cannot be started.
    """
    # The one place where the probe's code runs here: both sides do the same.
    expected = rank(model, {"queries": QUERIES, "documents": DOCUMENTS})
    rough = TOLERANCE if next(model.parameters()).dtype == torch.float32 else ROUGH_TOLERANCE
    with_own = any(OWN_PACKAGE in code for card in build.cards.values() for code in card.blocks)
    processes = PROCESSES if with_own else PROCESSES[:-1]
    is_small = sum(file.size for file in build.files["main"]) < SMALL
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(2 if is_small else 1) as pool:
        _put_in_cache(Path(scratch), build.repo_id, build.folders)
        for base, path in build.bases.items():
            _put_in_cache(Path(scratch), base, {"main": path})
        answers = list(pool.map(lambda tasks: _run(build, Path(scratch), tasks), processes))
    checks = [_check_files(build)]
    for process, (results, problem) in zip(processes, answers, strict=True):
        for task, name in process.items():
            if task in results:
                checks.append(_compare(name, results[task], expected, rough if "plain" in process else TOLERANCE))
            else:
                checks.append(Check(name, problem=problem))
                problem = "not tried, since the check before it failed"
    return checks


def _check_files(build: Build) -> Check:
    """Every file is still the one that was built, and the code is the package's own."""
    name = "files, byte for byte"
    source = Path(sys.modules[f"{OWN_PACKAGE}.modeling_e2rank"].__file__ or "")
    if (build.folders["main"] / source.name).read_bytes() != source.read_bytes():
        return Check(name, problem=f"{source.name} is not the package's own. Build again.")
    for revision, folder in build.folders.items():
        if check_contents(folder) != build.files[revision]:
            return Check(name, problem=f"the files of {revision} have changed since they were built. Build again.")
    return Check(name)


def _compare(name: str, got: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> Check:
    """The largest difference, and the first text at which it is too large."""
    largest, problem = None, ""
    for part, values in got.items():
        one, other = np.asarray(values), np.asarray(expected[part])
        if one.shape != other.shape:
            return Check(name, problem=f"{part} gives the shape {one.shape}, the source model {other.shape}")
        difference = np.abs(one - other).reshape(len(one), -1).max(axis=1)  # one a text
        largest = max(largest or 0.0, float(difference.max()))
        if not problem and not difference.max() <= tolerance:
            row = int(difference.argmax())
            text = (DOCUMENTS if part == "encode_document" else QUERIES)[row]
            problem = f"{part} differs by {difference[row]:.1e} for {text!r:.60}; allowed is {tolerance:.0e}"
    return Check(name, largest, problem)


def _run(build: Build, cache: Path, tasks: Iterable[str]) -> tuple[dict[str, Any], str]:
    """Do some of the probe's tasks in a fresh process: their results, and why the next one has none."""
    with_package = "blocks" in tasks
    visible = set() if with_package else _closure(["sentence-transformers", *(["peft"] if build.bases else [])])
    job = {
        "tasks": list(tasks),
        "repo_id": build.repo_id,
        "main": str(build.folders["main"].resolve()),
        "queries": QUERIES,
        "documents": DOCUMENTS,
        "hidden": _hidden_modules(visible) if visible else [],
        "visible": sorted(visible),
        "path": [str(Path(__file__).parents[2])] if with_package else [],
        "blocks": {
            name: [code for code in card.blocks if (OWN_PACKAGE in code) == with_package]
            for name, card in build.cards.items()
        },
    }
    # Without settings of the Hub, least of all the token.
    environment = {name: value for name, value in os.environ.items() if not re.search("HF_|HUGGING|TOKEN", name)}
    environment |= {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-I", str(Path(__file__).with_name("probe.py"))]
    with TemporaryDirectory(dir=cache) as folder:
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment["HF_HOME"] = folder
        try:
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
            problem = _last_words(done.stderr) or f"ended with status {done.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"no answer within {TIMEOUT:.0f} s"
        results = Path(folder, "results.json")
        return json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}, problem


def _put_in_cache(cache: Path, repo_id: str, folders: Mapping[str, Path]) -> None:
    """Arrange the folders of revisions as the Hub's client does after a download."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    for name in ("refs", "snapshots"):
        (repository / name).mkdir(parents=True)
    for revision, folder in folders.items():
        commit = sha1(f"{repo_id}@{revision}".encode()).hexdigest()
        (repository / "refs" / revision).write_text(commit, encoding="utf-8")
        (repository / "snapshots" / commit).symlink_to(folder.resolve())
        if not (folder / "config.json").exists():  # an adapter's; offline, the client takes a gap for a broken download
            absent = repository / ".no_exist" / commit / "config.json"
            absent.parent.mkdir(parents=True)
            absent.touch()


def _hidden_modules(visible: set[str]) -> list[str]:
    """Modules that can be imported here but do not belong to a visible distribution."""
    hidden = [
        module
        for module, names in packages_distributions().items()
        if module.isidentifier() and visible.isdisjoint(map(canonicalize_name, names))
    ]
    return sorted({*hidden, OWN_PACKAGE})


def _closure(names: Iterable[str]) -> set[str]:
    """Distributions and all their requirements, with the extras that one of them asks for."""
    found: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in names]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        with suppress(PackageNotFoundError):  # for another platform
            for line in map(Requirement, requires(one[0]) or []):
                if not line.marker or line.marker.evaluate({"extra": one[1]}):
                    waiting += [(canonicalize_name(line.name), option) for option in ("", *line.extras)]
    return {name for name, _ in found}


def _last_words(stderr: str) -> str:
    """The error at the end of a traceback, and the block of the card that raised it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    block = next((line for line in reversed(lines) if "<Python block" in line), "")
    where = f" ({block})" if block else ""
    return f"{' '.join(lines[-1:])}{where}"
