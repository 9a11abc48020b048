"""Queries with judged candidates → nDCG of every reranking setting on every query, at the price of a few.

Documents and queries are embedded once. Only the order of the candidates and K change a prompt, so each such pair costs
one prompt a query; prompts that come out the same are embedded once. The weights are arithmetic on cosines: a mix of
query and prompt ranks like the mix of both cosines, since both vectors have unit length.

Axes: B queries, N candidates of one query, K documents in the prompt, S settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from e2rank_st.embedding_e2rank import cosine, fuse
from e2rank_st.evaluation.metrics import Grade, ndcg
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.search.reranking import rerank_rows
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import embed_distinct

__all__ = ["FIRST_STAGE", "JudgedLists", "Scores", "Setting", "Trials", "mixed", "run_trials", "settings_of"]

Scores: TypeAlias = NDArray[np.float64]

QUERY_WEIGHTS = (0.0, 0.3, 0.5, 0.7)  # and 1, the plain embedding, which needs no prompt
FIRST_STAGE_WEIGHTS = (0.0, 0.3, 0.5, 0.7)  # and 1, which is not to rerank
PROMPT_DOCUMENTS = (1, 2, 3, 5, 10)
TOKENS_OF_A_DOCUMENT = 32  # a prompt with less room for each of K documents shows hardly more than their titles
QUERIES_AT_ONCE = 64  # queries whose candidate vectors are gathered at a time
DEPTH = 10  # of nDCG


class Setting(NamedTuple):
    """Arguments of ``rerank``, which are also keys of a model's reranking configuration.

    Attributes:
        candidate_order: ``"given"`` or ``"similarity"``.
        num_prompt_documents: K.
        query_weight: Share w of the plain query; with 1 it is the plain embedding.
        first_stage_weight: Share of the first stage's scores; with 1 nothing is reranked.
    """

    candidate_order: str
    num_prompt_documents: int
    query_weight: float
    first_stage_weight: float

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._asdict().items())

    def options(self) -> dict[str, Any]:
        """Returns the setting as arguments of ``rerank``, or keys of a configuration."""
        return self._asdict()


FIRST_STAGE = Setting("given", 0, 1.0, 1.0)  # the order of the first stage as it is


class Trials(NamedTuple):
    """The scores of all settings.

    Attributes:
        settings: S settings. :data:`FIRST_STAGE` comes first, then those that change least.
        scores: nDCG@10, (S, B).
        plain: The setting that is the plain embedding.
        configured: The setting that is the model's configuration; None if that mixes scores which are not there.
    """

    settings: tuple[Setting, ...]
    scores: Scores
    plain: Setting
    configured: Setting | None = None

    def of(self, setting: Setting) -> list[float]:
        """The score of a setting on each query."""
        scores: list[float] = self.scores[self.settings.index(setting)].tolist()
        return scores


def settings_of(own: Setting, counts: Iterable[int], orders: Sequence[str], *, fuses: bool) -> tuple[Setting, ...]:
    """List the settings to try, from those that change least.

    Args:
        own: The model's configuration. Its K and its weights are tried, too.
        counts: Each K to try.
        orders: The orders to try.
        fuses: Whether the first stage has scores to mix.
    """
    shares = sorted({*FIRST_STAGE_WEIGHTS, own.first_stage_weight} - {1.0}, reverse=True) if fuses else [0.0]
    weights = sorted({*QUERY_WEIGHTS, own.query_weight} - {1.0}, reverse=True)
    plain = [own._replace(query_weight=1.0, first_stage_weight=share) for share in shares]
    kinds = product(orders, sorted({*counts, own.num_prompt_documents}), weights, shares)
    prompted = sorted((Setting(*kind) for kind in kinds), key=lambda kind: (-kind[3], -kind[2], kind[1], kind[0]))
    return (FIRST_STAGE, *plain, *prompted)


def _own(listwise: ListwiseRerank, most_candidates: int) -> Setting:
    """A model's configuration."""
    count = min(listwise.num_prompt_documents, most_candidates)
    return Setting(listwise.candidate_order, count, listwise.query_weight, listwise.first_stage_weight)


@dataclass(frozen=True, eq=False)
class JudgedLists:
    """What a first stage found for B queries, with judgements.

    Attributes:
        queries: B queries.
        documents: The candidates of each query, best first.
        grades: A grade for each candidate, higher is better; None for an unjudged one.
        ideal: Grades of all judged documents of each query, for the ideal ranking.
        scores: The first stage's score of each candidate, greater is better; None if it has none.

    Raises:
        ValueError: The lists differ in length, or a score is not a finite number.
    """

    queries: Sequence[str]
    documents: Sequence[Sequence[str]]
    grades: Sequence[Sequence[Grade]]
    ideal: Sequence[Iterable[Grade]]
    scores: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        """Check that all belongs together."""
        names = ("queries", "documents", "grades", "ideal", *(["scores"] if self.scores is not None else []))
        sizes = {name: len(getattr(self, name)) for name in names}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"Got {sizes}; give one of each for every query.")
        for row, query in enumerate(self.queries):
            parts = [self.documents[row], self.grades[row], *([self.scores[row]] if self.scores is not None else [])]
            if len({len(part) for part in parts}) != 1:
                got = ", ".join(f"{len(part)} {name}" for part, name in zip(parts, names[1:3] + names[4:], strict=True))
                raise ValueError(f"{query!r:.60} has {got}; give as many of each.")
            if self.scores is not None and not np.isfinite(np.asarray(self.scores[row], np.float64)).all():
                raise ValueError(f"{query!r:.60} has a score that is not finite; give finite scores.")


def run_trials(
    model: Any, lists: JudgedLists, index: TextVectors, *, batch_size: int = 32, show_progress_bar: bool = False
) -> Trials:
    """Score every setting on every query.

    Args:
        model: A model with ``rerank``.
        lists: Queries with judged candidates.
        index: The vectors of all candidates.
        batch_size: Texts in a forward pass.
        show_progress_bar: Whether to show progress bars.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
    vectors = torch.from_numpy(embed_distinct(model, lists.queries, "query", **options))  # (B, D)
    plain = [
        cosine(torch.from_numpy(index.vectors(texts)), vector)  # (N,)
        for texts, vector in zip(lists.documents, vectors, strict=True)
    ]
    places = {
        "given": [list(range(len(texts))) for texts in lists.documents],
        "similarity": [torch.argsort(values, descending=True, stable=True).tolist() for values in plain],
    }
    if places["given"] == places["similarity"]:  # the prompts are the same, too
        places = {model.listwise.candidate_order: places["given"]}
    own = _own(model.listwise, max(map(len, plain)))
    limit = min(model.listwise.max_prompt_tokens // TOKENS_OF_A_DOCUMENT, max(map(len, plain)))
    counts = sorted({own.num_prompt_documents, *(count for count in PROMPT_DOCUMENTS if count <= limit)})
    settings = settings_of(own, counts, tuple(places), fuses=lists.scores is not None)
    scores = np.empty((len(settings), len(plain)))
    with tqdm(total=len(plain) * len(counts), desc="prompts", disable=not show_progress_bar) as progress:
        for start in range(0, len(plain), QUERIES_AT_ONCE):
            rows = range(start, min(start + QUERIES_AT_ONCE, len(plain)))
            jobs = [(order, row) for order in places for row in rows]
            orders = [places[order][row] for order, row in jobs]
            found: dict[tuple[str, int, int], Scores] = {}
            for count in counts:
                cosines = _listwise(model, lists, index, [row for _, row in jobs], orders, count, batch_size)
                found |= {(order, row, count): part for (order, row), part in zip(jobs, cosines, strict=True)}
                progress.update(len(rows))
            for row in rows:
                parts = {(order, count): found[order, row, count] for order in places for count in counts}
                first = None if lists.scores is None else np.asarray(lists.scores[row], np.float64)
                made = mixed(settings, plain[row].double().numpy(), parts, first)  # (S, N)
                best = np.argsort(-made, axis=1, kind="stable")[:, :DEPTH].tolist()
                grades, ideal = lists.grades[row], list(lists.ideal[row])
                scores[:, row] = [ndcg([grades[place] for place in order], ideal) for order in best]
    same = own._replace(query_weight=1.0, first_stage_weight=0.0)
    return Trials(settings, scores, same, own if own in settings else None)


def _listwise(
    model: Any,
    lists: JudgedLists,
    index: TextVectors,
    rows: Sequence[int],
    orders: Sequence[Sequence[int]],
    count: int,
    batch_size: int,
) -> list[Scores]:
    """Cosines of the candidates of some queries to their prompts, which show the first K of an order: each (N,).

    All orders go in one call, because a call embeds equal prompts once.
    """
    texts = [[lists.documents[row][place] for place in order] for row, order in zip(rows, orders, strict=True)]
    rankings = rerank_rows(
        model,
        [lists.queries[row] for row in rows],
        orders,
        texts,
        [torch.from_numpy(index.vectors(part)) for part in texts],
        candidate_order="given",
        num_prompt_documents=count,
        query_weight=0.0,
        batch_size=batch_size,
        show_progress_bar=False,
    )
    cosines = [np.empty(len(order)) for order in orders]
    for values, ranking in zip(cosines, rankings, strict=True):
        for hit in ranking:
            values[hit["corpus_id"]] = hit["score"]
    return cosines


def mixed(
    settings: Sequence[Setting],
    plain: Scores,
    prompted: Mapping[tuple[str, int], Scores],
    first_stage: Scores | None,
) -> Scores:
    """Mix the cosines of a query's candidates, and the first stage's scores, as each setting says.

    Args:
        settings: S settings.
        plain: Cosines to the query, (N,).
        prompted: Cosines to the prompt of an order and a K, (N,) each.
        first_stage: The first stage's scores, (N,); None if no setting mixes them.

    Returns:
        Scores of the candidates, greater is better, (S, N).
    """
    made = np.empty((len(settings), len(plain)))
    for row, (order, count, query_weight, share) in enumerate(settings):
        if share == 1:
            made[row] = -np.arange(len(plain))  # as it came
            continue
        made[row] = query_weight * plain
        if query_weight < 1:
            made[row] += (1 - query_weight) * prompted[order, count]
        if share:
            assert first_stage is not None
            made[row] = fuse(torch.from_numpy(made[row]), torch.from_numpy(first_stage), share).numpy()
    return made
