"""Queries and a corpus with or without an answer → how well the highest similarity tells which of both it is.

A search always returns something. Whether any of it is relevant, ``rerank(..., min_similarity=...)`` decides by a
threshold. Here each query searches its corpus three times: with its relevant documents (*present*), without them
(*removed*), and as a query of another task (*foreign*). Removed is hard, since documents beside the topic stay, and
relevant ones that nobody judged. Foreign is easy. A user's own case lies between them.

Axes: B queries, N documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2rank_st.benchmarks.figures import save, separation
from e2rank_st.benchmarks.first_stages import read_judged
from e2rank_st.benchmarks.instructions import instructed
from e2rank_st.benchmarks.models import Subject, load
from e2rank_st.benchmarks.report import Table
from e2rank_st.benchmarks.tasks import Task, find_tasks
from e2rank_st.bundled import BASE
from e2rank_st.checkpoints import check_name
from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.provenance import environment
from e2rank_st.search.exact import Rules, nearest
from e2rank_st.search.vectors import Matrix
from e2rank_st.storage import folder_sha256, read_json, write_json, write_text

__all__ = ["Options", "Separation", "area", "kept", "measure", "read_separations", "tables", "write"]

NAME = "relevance"  # of the files
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
DIGITS = 4  # of a similarity in the file


@dataclass(frozen=True)
class Options:
    """The options of ``e2rank eval relevance``, whose ``--help`` says what each means.

    Raises:
        ValueError: A name is unknown, or there are fewer than two tasks.
    """

    tasks: Sequence[str]
    data_dir: Path
    model: str = BASE
    device: str | None = None
    dtype: str = "saved"
    batch_size: int = 32
    output_dir: Path = Path(NAME)
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        """Refuse what would fail later."""
        check_name(self.model)
        if len(find_tasks(self.tasks)) < 2:
            raise ValueError("Give at least two tasks: the queries of one are foreign to the corpus of another.")


@dataclass(frozen=True)
class Separation:
    """The similarity of each query's nearest document in the corpus of a task.

    Attributes:
        title: The task's name in tables.
        documents: N.
        present: Of its queries, with their relevant documents in the corpus.
        removed: Of the same queries, without them.
        foreign: Of the queries of the other tasks.
    """

    title: str
    documents: int
    present: Sequence[float]
    removed: Sequence[float]
    foreign: Sequence[float]


def area(present: Sequence[float], absent: Sequence[float]) -> float:
    """Area under the ROC curve: how often the first is the higher one of a pair. A tie counts half."""
    ordered = np.sort(np.asarray(absent))
    below, not_above = (np.searchsorted(ordered, present, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(ordered))


def kept(similarities: Sequence[float], threshold: float) -> float:
    """Share of queries with a result that is not below the threshold."""
    return float((np.asarray(similarities) >= threshold).mean())


def measure(options: Options) -> list[Separation]:
    """Embed the queries and the corpus of each task, and search.

    Raises:
        ValueError: A file of the data does not fit, or a model cannot be loaded.
        OSError: A file or the model cannot be read.
    """
    subject = load(options.model, device=options.device, dtype=options.dtype)
    tasks = find_tasks(options.tasks)
    parts = [read_judged(task, _folder(options, task)) for task in tasks]
    vectors = []
    for task, part in zip(tasks, parts, strict=True):
        with instructed(subject.model, task.retrieval_instruction):
            how: Any = {"batch_size": options.batch_size, "show_progress_bar": False}
            vectors.append(subject.model.encode_query(list(part.queries.values()), **how))
    found = []
    for place, (task, part) in enumerate(zip(tasks, parts, strict=True)):
        foreign = np.concatenate([other for row, other in enumerate(vectors) if row != place])
        found.append(_separate(options, task, part, subject, vectors[place], foreign))
    return found


def _folder(options: Options, task: Task) -> Path:
    return options.data_dir / (task.folder or task.name)


def _separate(
    options: Options, task: Task, part: JudgedCorpus, subject: Subject, own: Matrix, foreign: Matrix
) -> Separation:
    documents = subject.embed(list(part.corpus.values()), options.batch_size, options.show_progress_bar).embeddings
    row_of = {id_: row for row, id_ in enumerate(part.corpus)}
    relevant = [
        np.array(sorted(row_of[id_] for id_, grade in grades.items() if grade >= task.relevant_from), np.int64)
        for grades in part.judgements.values()
    ]
    return Separation(
        task.title,
        len(documents),
        present=_highest(own, documents),
        removed=_highest(own, documents, Rules(relevant)),
        foreign=_highest(foreign, documents),
    )


def _highest(queries: Matrix, documents: Matrix, rules: Rules | None = None) -> list[float]:
    """The cosine of each query's nearest document."""
    return [round(float(near.scores[0]), DIGITS) for near in nearest(queries, documents, 1, rules=rules)]


def tables(separations: Sequence[Separation]) -> str:
    """Two tables in Markdown: the areas under the curves, and what some thresholds keep."""
    areas = Table(
        "areas",
        "Area under the ROC curve (1: told apart always, 0.5: by chance)",
        ("corpus", "documents", "queries", "present or removed", "present or foreign"),
        tuple(
            (
                part.title,
                f"{part.documents:,}",
                f"{len(part.present):,}",
                *(f"{area(part.present, absent):.3f}" for absent in (part.removed, part.foreign)),
            )
            for part in separations
        ),
    )
    shares = Table(
        "shares",
        "Queries that keep a result, in per cent",
        ("corpus", "min_similarity", "present", "removed", "foreign"),
        tuple(
            (
                part.title,
                f"{threshold:.1f}",
                *(f"{100 * kept(values, threshold):.0f}" for values in (part.present, part.removed, part.foreign)),
            )
            for part in separations
            for threshold in THRESHOLDS
        ),
    )
    return f"{areas.markdown}\n{shares.markdown}"


def write(options: Options, separations: Sequence[Separation]) -> list[Path]:
    """Write the similarities (JSON), the tables (Markdown) and the figure (PNG), each whole or not at all.

    Raises:
        ImportError: matplotlib is missing.
        OSError: A file cannot be written.
    """
    paths = [options.output_dir / f"{NAME}.{ending}" for ending in ("json", "md", "png")]
    folders = [_folder(options, task) for task in find_tasks(options.tasks)]
    content: Mapping[str, Any] = {
        "model": options.model,
        "sources": {folder.name: f"sha256-{folder_sha256(folder)[:12]}" for folder in folders},
        "environment": environment(None),
        "separations": list(map(asdict, separations)),
    }
    write_json(paths[0], content, indent=None)
    write_text(paths[1], tables(separations))
    save(separation(separations), paths[2])
    return paths


def read_separations(path: Path) -> list[Separation]:
    """Read the similarities that :func:`write` wrote."""
    return [Separation(**part) for part in read_json(path)["separations"]]
