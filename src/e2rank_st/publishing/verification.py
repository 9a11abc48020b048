"""A build and its source model → checks in fresh processes, each of them like a stranger's machine.

The processes find the build under its Hub id, in a cache made for them. The network is off, and only
Sentence-Transformers and its requirements can be imported. A build that works there works for everybody who downloads
the repository. The Python of a card is run only for the user who asked for it, and only without a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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

from e2rank_st import modeling_e2rank
from e2rank_st.model import E2Rank
from e2rank_st.publishing.build import Build, Form
from e2rank_st.publishing.contents import check_contents
from e2rank_st.publishing.probe import rank
from e2rank_st.publishing.sandbox import MEMORY, probe, why_no_namespace
from e2rank_st.storage import read_json

__all__ = ["Check", "check_card", "verify"]

OWN_PACKAGE = "e2rank_st"
COMMIT = re.compile(r"[0-9a-f]{40}")
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
# The checks of each process, in order, by the kind of a build. The first process of a model may not run code.
STOCK = {
    "embedding": "embedding revision, without a flag", "plain": "AutoTokenizer, AutoModel and pooling; the prompt",
}  # fmt: skip
REMOTE = {"remote": "main revision, trust_remote_code=True", "again": "saved and loaded again; Python of our own card"}
PACKAGE = {"package": "E2Rank, without peft; its vectors are the base's, bit for bit"}
PROCESSES: dict[Form, tuple[dict[str, str], ...]] = {
    "model": (STOCK, REMOTE),
    "adapter": (STOCK, REMOTE),
    "prompt model": ({**REMOTE, "again": "saved and loaded again"}, PACKAGE),
    "prompt adapter": (PACKAGE,),
}
CARD = "Python of the card"
NOT_NAMED = "not run; --run-card runs it"
SMALL = 2 * 2**30  # bytes of a model that fits into memory several times
TIMEOUT = 3600.0  # seconds for one process; an 8B model on a CPU takes its time
CARD_TIMEOUT = 900.0  # seconds for the Python of a card, which loads a model or two
COPIES = 6  # of the weights that a process may hold in memory


@dataclass(frozen=True)
class Check:
    """A check's outcome.

    Attributes:
        name: The thing that was checked.
        difference: Largest difference to the source model, if vectors or scores were compared.
        problem: Why the check failed; empty if it passed.
        note: Why nothing was checked; empty if it was.
    """

    name: str
    difference: float | None = None
    problem: str = ""
    note: str = ""


def verify(build: Build, model: E2Rank, run_card: bool = False) -> list[Check]:
    """Check a build as a stranger would use it.

    Args:
        build: The build.
        model: The source model, on the CPU.
        run_card: Whether to run the Python of its card, which may come from anybody.

    Returns:
        All checks, the failed ones with their problem.

    Raises:
        OSError: A process cannot be started.
    """
    # The one place where the probe's code runs here: both sides do the same.
    expected = rank(model, {"queries": QUERIES, "documents": DOCUMENTS})
    prompt, expected["listwise prompt"] = _prompt(model)
    rough = TOLERANCE if next(model.parameters()).dtype == torch.float32 else ROUGH_TOLERANCE
    job = {
        "repo_id": build.repo_id,
        "main": str(build.folders["main"].resolve()),
        "queries": QUERIES,
        "documents": DOCUMENTS,
        "prompt": prompt,
        "length": model.max_seq_length,
        "blocks": build.cards["embedding"].blocks
        if "embedding" in build.cards
        else [],  # ours, whatever card was given
        "card": "embedding",
        "base": _base(build),
    }
    processes = PROCESSES[build.form]
    with _cache(build) as folder, ThreadPoolExecutor(2 if _weight(build) < SMALL else 1) as pool:
        jobs = [{**job, "tasks": list(process)} for process in processes]
        answers = list(pool.map(lambda one: _probe(build, folder, one, TIMEOUT, "package" in one["tasks"]), jobs))
    checks = []
    for process, (results, problem) in zip(processes, answers, strict=True):
        for task, name in process.items():
            if task in results:
                checks.append(_compare(name, results[task], expected, rough if "plain" in process else TOLERANCE))
            else:
                checks.append(Check(name, problem=problem))
                problem = "not tried, since the check before it failed"
    # The files last, since the card's Python could have changed them.
    checks += check_card(build, run_card)
    return [_check_files(build), *checks]


def check_card(build: Build, run_card: bool) -> list[Check]:
    """Run the Python blocks of the card of ``main``, or say why they are not run.

    Those that import this package see it; the others see what a stranger's machine has.

    Args:
        build: The build.
        run_card: Whether the user asked for it.

    Returns:
        A check for each of the two kinds of blocks that the card has.

    Raises:
        OSError: A process cannot be started.
    """
    checks, blocks = [], build.cards["main"].blocks
    why_not = why_no_namespace() and f"not run, since {why_no_namespace()}, so its Python could reach the network"
    for has_package, name in ((False, CARD), (True, f"{CARD}, with this package")):
        chosen = [code for code in blocks if (OWN_PACKAGE in code) == has_package]
        if not chosen:
            continue
        if why_not or not run_card:
            checks.append(Check(name, note=why_not if run_card else NOT_NAMED))
            continue
        job = {"tasks": ["blocks"], "blocks": chosen, "card": "main"}
        with _cache(build) as folder:
            checks.append(Check(name, problem=_probe(build, folder, job, CARD_TIMEOUT, has_package)[1]))
    return checks


def _prompt(model: E2Rank) -> tuple[dict[str, Any], list[list[float]]]:
    """A listwise prompt as others build it, from its text, with the ids that it must have; and its vector here."""
    listwise = model.listwise
    embedder = listwise.embedder(batch_size=1)
    query, documents = QUERIES[0], DOCUMENTS[:2]  # without control tokens in them
    ids = embedder.prompts([query], [documents], listwise.instruction)[0].ids
    text = listwise.format.render(listwise.instruction, query, documents)
    with torch.inference_mode():
        vectors: list[list[float]] = embedder.embed([ids], "prompt").tolist()
    return {"text": text, "ids": list(ids), "chat": listwise.format.chat}, vectors


def _check_files(build: Build) -> Check:
    """Every file is still the one that was built, and the code is the package's own."""
    name = "files, byte for byte"
    names = () if build.form == "prompt adapter" else modeling_e2rank.SOURCES
    for source in (Path(str(modeling_e2rank.__file__)).with_name(name) for name in names):
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


def _base(build: Build) -> dict[str, Any] | None:
    """The base whose vectors a model with a prompt adapter must have, and whether it loads without this package."""
    if build.base is None or not build.form.startswith("prompt"):
        return None
    path = build.base.folder / "modules.json"
    is_stock = path.is_file() and not any("e2rank" in row["type"] for row in read_json(path))
    return {"name": build.base.repo_id, "revision": build.base.revision, "is_stock": is_stock}


def _weight(build: Build) -> int:
    own = sum(file.size for file in build.files["main"])
    return own + (sum(path.stat().st_size for path in build.base.folder.rglob("*.safetensors")) if build.base else 0)


@contextmanager
def _cache(build: Build) -> Iterator[Path]:
    """A Hub cache that holds the build under its id, as after a download."""
    with TemporaryDirectory() as scratch:
        _put_in_cache(Path(scratch), build.repo_id, build.folders)
        if build.base:
            _put_in_cache(Path(scratch), build.base.repo_id, {build.base.revision or "main": build.base.folder})
        yield Path(scratch)


def _probe(
    build: Build, cache: Path, job: Mapping[str, Any], seconds: float, has_package: bool = False
) -> tuple[dict[str, Any], str]:
    """Do the probe's tasks in a fresh process: their results, and why there are no more of them."""
    needed = ["sentence-transformers", *(["peft"] if build.form == "adapter" else [])]
    visible = set() if has_package else _closure(needed)
    more = {
        "hidden": _hidden_modules(visible) if visible else ["peft"] if build.form.startswith("prompt") else [],
        "visible": sorted(visible),
        "path": [str(Path(__file__).parents[2])] if has_package else [],
        "memory": MEMORY + COPIES * _weight(build),
    }
    return probe({**job, **more}, cache, seconds)


def _put_in_cache(cache: Path, repo_id: str, folders: Mapping[str, Path]) -> None:
    """Arrange the folders of revisions as the Hub's client does after a download."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    for name in ("refs", "snapshots"):
        (repository / name).mkdir(parents=True)
    for revision, folder in folders.items():
        commit = revision if COMMIT.fullmatch(revision) else sha1(f"{repo_id}@{revision}".encode()).hexdigest()
        (repository / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)  # a name may have a slash
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
