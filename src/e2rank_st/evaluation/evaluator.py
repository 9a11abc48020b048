"""Queries with judged candidates → nDCG of the first stage, of the plain embedding and of listwise reranking.

All three rank the same candidates, so only the methods make the difference. nDCG is trec_eval's: the gain of a document
is its grade, and a negative or missing grade gains nothing.

Axes: B queries, N candidates of one query, D dimensions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor

from e2rank_st.data.files import id_field, parse_rows
from e2rank_st.data.formats import read_results
from e2rank_st.data.slates import Slate
from e2rank_st.data.trec import read_qrels
from e2rank_st.embedding_e2rank import cosine
from e2rank_st.evaluation.metrics import Grade, ndcg
from e2rank_st.search.maker import Maker, describe
from e2rank_st.search.reranking import rerank_rows
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct, embed_distinct
from e2rank_st.storage import text_id

__all__ = ["SYSTEMS", "RerankingEvaluator"]

SYSTEMS = ("first_stage", "embedding", "listwise")
QUERIES_AT_ONCE = 256  # queries whose candidate vectors are gathered at a time


class RerankingEvaluator(BaseEvaluator):
    """Measures how a model ranks given candidates, by its plain embedding and listwise.

    The metrics are ``{name}_first_stage_ndcg@10`` (candidates in the given order), ``{name}_embedding_ndcg@10`` (sorted
    by the cosine of query and document) and ``{name}_listwise_ndcg@10`` (reranked with the same document vectors). Each
    is from 0 to 1; the last one is the primary metric.

    Args:
        queries: B queries.
        documents: The candidates of each query, in the order of the first stage.
        grades: A grade for each candidate, higher is better; None for an unjudged one.
        ideal: Grades of all judged documents of each query, for the ideal ranking; by default ``grades``. They include
            documents that are not candidates.
        name: Prefix of the metrics.
        own_first_stage: Sort the candidates by the model's own cosine before a prompt is built, instead of trusting the
            given order. Use it whenever that order might show the labels. A hash of the text breaks ties.
        batch_size: Texts in a forward pass.

    Attributes:
        per_query: nDCG of each query, for each system, after a call. It is the input of
            :func:`~e2rank_st.evaluation.significance.randomisation_test`.

    Raises:
        ValueError: Queries are missing, or the lists differ in length.
    """

    def __init__(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str]],
        grades: Sequence[Sequence[Grade]],
        *,
        ideal: Sequence[Iterable[Grade]] | None = None,
        name: str = "",
        own_first_stage: bool = False,
        batch_size: int = 32,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.queries, self.documents, self.grades = list(queries), list(documents), list(grades)
        self.ideal = list(grades if ideal is None else ideal)
        self._check()
        self.name = name
        self.own_first_stage = own_first_stage
        self.batch_size = batch_size
        self.metrics = tuple(f"{system}_ndcg@10" for system in SYSTEMS)
        self.primary_metric = f"{name}_{self.metrics[-1]}" if name else self.metrics[-1]
        self.per_query: dict[str, list[float]] = {}
        self._kept: tuple[Maker, TextVectors, Tensor] | None = None

    @classmethod
    def from_slates(cls, slates: Iterable[Slate], **options: Any) -> RerankingEvaluator:
        """Evaluate on at least one slate: the documents are the candidates, and the labels are the grades.

        Args:
            slates: B slates.
            **options: As for the class.
        """
        slates = list(slates)
        columns = [[getattr(slate, name) for slate in slates] for name in ("query", "documents", "labels")]
        return cls(*columns, **options)

    @classmethod
    def from_results(
        cls,
        path: str | os.PathLike[str],
        qrels: str | os.PathLike[str],
        *,
        places: Sequence[int] | None = None,
        **options: Any,
    ) -> RerankingEvaluator:
        """Evaluate on a first stage's results with judgements; the ideal ranking includes documents it did not find.

        Args:
            path: Results with text, see :func:`~e2rank_st.data.formats.read_results`.
            qrels: Judgements in TREC's form.
            places: Rows of the file to use, counted from 0; all by default.
            **options: As for the class.

        Raises:
            DataError: A row of a file is bad.
        """
        slates = list(read_results(path, qrels=qrels))
        judged = read_qrels(qrels)
        ids = parse_rows(path, lambda row: id_field(row["hits"][0], "qid"))
        ideal = [list(judged[query].values()) for query in ids]
        chosen = range(len(slates)) if places is None else places
        return cls.from_slates([slates[place] for place in chosen], ideal=[ideal[place] for place in chosen], **options)

    def _check(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("queries", "documents", "grades", "ideal")}
        if len(set(sizes.values())) != 1 or not self.queries:
            raise ValueError(f"Got {sizes}; give one of each for every query, and at least one query.")
        for query, texts, grades in zip(self.queries, self.documents, self.grades, strict=True):
            if len(texts) != len(grades):
                raise ValueError(f"{query!r:.60} has {len(texts)} candidates and {len(grades)} grades; give as many.")

    def __call__(  # type: ignore[override]  # only this kind of model has embeddings
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Evaluate a model.

        Args:
            model: A model with ``rerank``.
            output_path: Unused; the trainer's log has the metrics.
            epoch: Epoch of the training, for the model card; -1 outside a training.
            steps: Step of the training, in the same way.

        Returns:
            The three metrics by name.
        """
        self.per_query = self.scores(model)
        means = [math.fsum(scores) / len(scores) for scores in self.per_query.values()]
        metrics = self.prefix_name_to_metrics(dict(zip(self.metrics, means, strict=True)), self.name)
        self.store_metrics_in_model_card_data(model, metrics, int(epoch), steps)
        return metrics

    def scores(self, model: Any) -> dict[str, list[float]]:
        """Compute nDCG of each query, for each of :data:`SYSTEMS`.

        Each distinct text is embedded once, and the listwise ranking uses the same vectors.
        """
        index, query_vectors = self._embedded(model)
        scores: dict[str, list[float]] = {system: [] for system in SYSTEMS}
        for start in range(0, len(self.queries), QUERIES_AT_ONCE):
            chunk = range(start, min(start + QUERIES_AT_ONCE, len(self.queries)))
            matrices = [torch.from_numpy(index.vectors(self.documents[query])) for query in chunk]  # (N, D) each
            similar = [
                self._by_similarity(query, matrix, query_vectors[query])
                for query, matrix in zip(chunk, matrices, strict=True)
            ]
            given = similar if self.own_first_stage else [list(range(len(self.documents[query]))) for query in chunk]
            listwise = self._listwise(model, chunk, given, matrices)
            for system, orders in zip(SYSTEMS, (given, similar, listwise), strict=True):
                scores[system] += [self._ndcg(query, order) for query, order in zip(chunk, orders, strict=True)]
        return scores

    def use(self, model: Any, documents: TextVectors, queries: TextVectors) -> None:
        """Take vectors that a model gave, instead of embedding with it, for as long as it gives the same.

        Args:
            model: The model.
            documents: All candidates with their vectors.
            queries: The queries with theirs.
        """
        self._kept = _maker(model), documents, torch.from_numpy(queries.vectors(self.queries))

    def _embedded(self, model: Any) -> tuple[TextVectors, Tensor]:
        """Embed documents and queries; once, as long as the model gives the same vectors (with a prompt adapter)."""
        if self._kept is None or self._kept[0] != _maker(model):
            index = TextVectors.build(model, distinct(self.documents), self.batch_size, show_progress_bar=False)
            options: dict[str, Any] = {"batch_size": self.batch_size, "show_progress_bar": False}
            vectors = torch.from_numpy(embed_distinct(model, self.queries, "query", **options))
            self._kept = _maker(model), index, vectors
        return self._kept[1:]

    def _by_similarity(self, query: int, matrix: Tensor, vector: Tensor) -> list[int]:
        """Sort candidates by cosine. Ties keep the given order, unless it is untrusted: then a hash breaks them."""
        cosines, texts = cosine(matrix, vector).tolist(), self.documents[query]
        ties = [text_id(text) if self.own_first_stage else 0 for text in texts]
        return sorted(range(len(texts)), key=lambda place: (-cosines[place], ties[place]))

    def _listwise(self, model: Any, chunk: range, given: list[list[int]], matrices: list[Tensor]) -> list[list[int]]:
        """Rerank the candidates from their given order; return places in ``documents``."""
        rankings = rerank_rows(
            model,
            [self.queries[query] for query in chunk],
            given,
            [[self.documents[query][place] for place in order] for query, order in zip(chunk, given, strict=True)],
            [matrix[order] for order, matrix in zip(given, matrices, strict=True)],
            # Sorted already: "given" gives the same order without embedding the queries again.
            candidate_order="given" if self.own_first_stage else None,
            batch_size=self.batch_size,
            show_progress_bar=False,
        )
        return [[hit["corpus_id"] for hit in ranking] for ranking in rankings]

    def _ndcg(self, query: int, order: Sequence[int]) -> float:
        return ndcg([self.grades[query][place] for place in order], self.ideal[query])

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        return {"own_first_stage": self.own_first_stage}


def _maker(model: Any) -> Maker:
    return {**describe(model), "prompts": dict(model.prompts)}
