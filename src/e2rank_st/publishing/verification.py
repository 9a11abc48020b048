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
from dataclasses import dataclass
from hashlib import sha1
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from packaging.requirements import Requirement

from e2rank_st.model import E2Rank
from e2rank_st.publishing import probe
from e2rank_st.publishing.build import Build
from e2rank_st.publishing.contents import check_contents

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
    expected = probe.rank(model, {"queries": QUERIES, "documents": DOCUMENTS})
    rough = TOLERANCE if next(model.parameters()).dtype == torch.float32 else ROUGH_TOLERANCE
    rows = (
        ("stock", "embedding", "embedding revision, without a flag", rough),
        ("stock", "plain", "AutoTokenizer, AutoModel and pooling", rough),
        ("remote", "remote", "main revision, trust_remote_code=True", TOLERANCE),
        ("again", "again", "saved and loaded again; Python of the cards", TOLERANCE),
        ("blocks", "", "Python of the cards, with this package", 0.0),
    )
    checks = [_check_files(build)]
    results = _run(build)
    for task, part, name, tolerance in rows:
        result = results.get(task)
        if isinstance(result, str):
            checks.append(Check(name, problem=result))
        elif result is not None:
            checks.append(_compare(name, result[part], expected, tolerance) if part else Check(name))
    return checks


def _run(build: Build) -> dict[str, dict[str, Any] | str]:
    """The result of each task, or the reason of its failure."""
    results: dict[str, dict[str, Any] | str] = {}
    chains = [("remote", "again"), ("stock",)]
    if any(OWN_PACKAGE in code for card in build.cards.values() for code in card.blocks):
        chains.append(("blocks",))
    is_small = sum(file.size for file in build.files["main"]) < SMALL
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(2 if is_small else 1) as pool:
        machine = _Machine(build, Path(scratch))

        def run(tasks: tuple[str, ...]) -> None:
            for task in tasks:
                is_lost = any(isinstance(results.get(earlier), str) for earlier in tasks)
                results[task] = "not tried, since loading failed" if is_lost else machine.run(task)

        list(pool.map(run, chains))  # as a list, so that an error in a thread is raised
    return results


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
    largest, problem = 0.0, ""
    for part, values in got.items():
        one, other = np.asarray(values), np.asarray(expected[part])
        if one.shape != other.shape:
            return Check(name, problem=f"{part} gives the shape {one.shape}, the source model {other.shape}")
        difference = np.abs(one - other).reshape(len(one), -1).max(axis=1)  # one a text
        largest = max(largest, float(difference.max()))
        if not problem and not difference.max() <= tolerance:
            row = int(difference.argmax())
            text = (DOCUMENTS if part == "encode_document" else QUERIES)[row]
            problem = f"{part} differs by {difference[row]:.1e} for {text!r:.60}; allowed is {tolerance:.0e}"
    return Check(name, largest, problem)


class _Machine:
    """A machine with an empty disk, but for a cache that holds the build as if it had been downloaded.

    Args:
        build: The build.
        folder: An empty folder for the cache and for the files of the processes.
    """

    def __init__(self, build: Build, folder: Path) -> None:
        self.build = build
        self.folder = folder
        self.cache = folder / "hub"
        _put_in_cache(self.cache, build.repo_id, build.folders)
        for base, path in build.bases.items():
            _put_in_cache(self.cache, base, {"main": path})
        if build.has_adapter and not build.bases:  # then this user's cache holds the base: show that one, too
            for base in build.cards["main"].base_models:
                name = f"models--{base.replace('/', '--')}"
                if Path(HF_HUB_CACHE, name).is_dir():
                    (self.cache / name).symlink_to(Path(HF_HUB_CACHE, name).resolve())
        self.visible = _closure(["sentence-transformers", *(["peft"] if build.has_adapter else [])])

    def run(self, task: str) -> dict[str, Any] | str:
        """Do one of the probe's tasks in a fresh process: its result, or the reason of its failure."""
        with_package = task == "blocks"
        own = Path(sys.modules[OWN_PACKAGE].__file__ or "").parents[1]
        job = {
            "task": task,
            "repo_id": self.build.repo_id,
            "main": str(self.build.folders["main"].resolve()),
            "again": str(self.folder / "again"),
            "queries": QUERIES,
            "documents": DOCUMENTS,
            "hidden": [] if with_package else _hidden_modules(self.visible),
            "visible": [] if with_package else sorted(self.visible),
            "path": [str(own)] if with_package else [],
            "blocks": {
                name: [code for code in card.blocks if (OWN_PACKAGE in code) == with_package]
                for name, card in self.build.cards.items()
            },
        }
        written, result = self.folder / f"{task}.job", self.folder / f"{task}.result"
        written.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-I", str(Path(probe.__file__).resolve()), str(written), str(result)]
        try:
            done = subprocess.run(
                command, env=self._environment(), cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {TIMEOUT:.0f} s"
        if done.returncode:
            return _last_words(done.stderr) or f"ended with status {done.returncode}"
        answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return answer

    def _environment(self) -> dict[str, str]:
        """This process's environment without settings of the Hub, least of all the token."""
        kept = {name: value for name, value in os.environ.items() if not re.search("HF_|HUGGING|TOKEN", name)}
        own = {"HF_HOME": str(self.folder / "home"), "HF_HUB_CACHE": str(self.cache), "HF_HUB_OFFLINE": "1"}
        return {**kept, **own, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


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
        if module.isidentifier() and not any(_normal(name) in visible for name in names)
    ]
    return sorted({*hidden, OWN_PACKAGE})


def _closure(names: Iterable[str]) -> set[str]:
    """Distributions and all their requirements, with the extras that one of them asks for."""
    found: set[tuple[str, str]] = set()
    waiting = [(_normal(name), "") for name in names]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        name, extra = one
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # for another platform
            continue
        wanted = [line for line in map(Requirement, lines) if not line.marker or line.marker.evaluate({"extra": extra})]
        waiting += [(_normal(line.name), option) for line in wanted for option in ("", *line.extras)]
    return {name for name, _ in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _last_words(stderr: str) -> str:
    """The error at the end of a traceback, and the block of the card that raised it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    block = next((line for line in reversed(lines) if "<Python block" in line), "")
    where = f" ({block})" if block else ""
    return f"{' '.join(lines[-1:])}{where}"
