"""Development data with long documents → ranking quality and costs of cutting them, and of scoring their passages.

The answers of MEDIQA are long as they are. Paragraphs of SQuAD are made longer: unrelated ones stand in front, so the
model reads the answer only if it reads to the end. Candidates are a query's judged answers, and paragraphs of the same
article.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2rank_st import E2Rank
from e2rank_st.console import markdown_table
from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.evaluation.metrics import ndcg
from e2rank_st.passages_e2rank import LONG_DOCUMENTS

__all__ = ["Measured", "measure", "table"]

NUM_CANDIDATES = 8  # paragraphs of an article
NUM_UNRELATED = 2  # paragraphs in front of each
TITLES = {"mediqa": "MEDIQA, dev", "squad": f"SQuAD, dev, behind {NUM_UNRELATED} unrelated paragraphs"}
Slate = tuple[str, list[str], list[float]]  # query, documents, grades


@dataclass(frozen=True)
class Measured:
    """One way of reading long documents, on one data set.

    Attributes:
        data: Name of the data set.
        long_documents: ``"cut"`` or ``"passages"``.
        queries: Number of queries.
        documents: Number of documents of all queries.
        ndcg: Mean nDCG@10, from 0 to 1.
        passes: Sequences through the model: documents or passages, queries and prompts.
        tokens: Their tokens.
        seconds: Processor time of all queries, documents embedded.
    """

    data: str
    long_documents: str
    queries: int
    documents: int
    ndcg: float
    passes: int
    tokens: int
    seconds: float


def measure(model: E2Rank, data_dir: Path, queries: int) -> list[Measured]:
    """Rerank each data set's first queries in both ways. Nothing is stored, so documents are embedded, too."""
    readers = {"mediqa": _judged, "squad": _lengthened}
    found = []
    for name, read in readers.items():
        slates = read(JudgedCorpus.load(data_dir / name, "dev"), queries)
        found += [_measure(model, name, slates, mode) for mode in LONG_DOCUMENTS]
    return found


def _judged(data: JudgedCorpus, queries: int) -> list[Slate]:
    rows = [(data.queries[query], grades) for query, grades in data.judgements.items() if any(grades.values())]
    return [(query, [data.corpus[id_] for id_ in grades], [*grades.values()]) for query, grades in rows[:queries]]


def _lengthened(data: JudgedCorpus, queries: int) -> list[Slate]:
    draw, ids = random.Random(0), list(data.corpus)
    slates = []
    for query in draw.sample(sorted(data.judgements), queries):
        grades = data.judgements[query]
        article = next(iter(grades)).partition("#")[0]
        own = [id_ for id_ in ids if id_.partition("#")[0] == article and id_ not in grades]
        chosen = [*grades, *draw.sample(own, min(NUM_CANDIDATES - len(grades), len(own)))]
        foreign = [id_ for id_ in draw.sample(ids, 40) if id_.partition("#")[0] != article]
        documents = [
            "\n\n".join(data.corpus[part] for part in (*draw.sample(foreign, NUM_UNRELATED), id_)) for id_ in chosen
        ]
        slates.append((data.queries[query], documents, [grades.get(id_, 0.0) for id_ in chosen]))
    return slates


def _measure(model: E2Rank, data: str, slates: list[Slate], mode: str) -> Measured:
    shapes: list[tuple[int, int]] = []

    def count(_: Any, arguments: tuple[Mapping[str, Any], ...]) -> None:
        mask = arguments[0]["attention_mask"]
        shapes.append((len(mask), int(mask.sum())))

    handle, begin, scores = model[0].register_forward_pre_hook(count), time.process_time(), []
    for query, documents, grades in slates:
        # "similarity" makes the result independent of the order of the candidates.
        hits = model.rerank(query, documents, long_documents=mode, candidate_order="similarity")
        scores.append(ndcg([grades[hit["corpus_id"]] for hit in hits], grades))
    seconds = time.process_time() - begin
    handle.remove()
    documents_in_all = sum(len(documents) for _, documents, _ in slates)
    passes, tokens = (sum(shape[axis] for shape in shapes) for axis in (0, 1))
    score = round(statistics.mean(scores), 6)
    return Measured(data, mode, len(slates), documents_in_all, score, passes, tokens, round(seconds, 2))


def table(rows: list[Measured]) -> str:
    """Write the results as a table in Markdown."""
    header = (
        "data", "long_documents", "queries", "documents", "nDCG@10", "sequences", "tokens", "processor seconds",
    )  # fmt: skip
    cells = [
        (
            TITLES[row.data], f"`{row.long_documents}`", str(row.queries), str(row.documents),
            f"{100 * row.ndcg:.2f}", f"{row.passes:,}", f"{row.tokens:,}", f"{row.seconds:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    return markdown_table(header, cells, labels=2) + "\n"


def as_json(rows: list[Measured]) -> list[dict[str, Any]]:
    """The rows as they are written to a file."""
    return [asdict(row) for row in rows]
