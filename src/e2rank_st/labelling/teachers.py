"""Slates → slates with a teacher's labels.

A teacher gives each document of a query a number; higher is better. It is a cross-encoder, an E2Rank or embedding
model, or a large language model. Known positives stay gold, independent of their labels.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, Protocol

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from e2rank_st.console import progress_wanted
from e2rank_st.data.slates import Slate
from e2rank_st.labelling.llm import AnswerError, LLMTeacher, TeacherError
from e2rank_st.search.vectors import embed_distinct

__all__ = [
    "AnswerError",
    "CrossEncoderTeacher",
    "E2RankTeacher",
    "EmbeddingTeacher",
    "LLMTeacher",
    "Teacher",
    "TeacherError",
    "label_slates",
]

logger = logging.getLogger(__name__)


class Teacher(Protocol):
    """Labels the documents of a query. A subclass defines :meth:`label`, :meth:`label_batch`, or both."""

    def label(self, query: str, documents: Sequence[str]) -> list[float]:
        """Return a label for each of N documents; higher is better."""
        return self.label_batch([query], [documents])[0]

    def label_batch(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the labels of B slates. By default, slates are labelled one after the other."""
        return [self.label(*slate) for slate in zip(queries, documents, strict=True)]


class CrossEncoderTeacher(Teacher):
    """A Sentence-Transformers cross-encoder.

    Labels are its raw outputs, because a sigmoid would make the best documents tie in float32.

    Args:
        model: The cross-encoder, with a single output.
        batch_size: Pairs in a forward pass.

    Raises:
        ValueError: The model has several outputs, and none is a score of relevance.
    """

    def __init__(self, model: CrossEncoder, *, batch_size: int = 32) -> None:
        if model.num_labels != 1:
            raise ValueError(f"The cross-encoder has {model.num_labels} outputs; give one with a single score.")
        self.model = model
        self.batch_size = batch_size

    def label_batch(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the raw scores of B slates. The model gets all their pairs together, sorted by length."""
        pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
        options: Any = {"activation_fn": nn.Identity(), "convert_to_tensor": True, "show_progress_bar": False}
        scores: Tensor = self.model.predict(pairs, batch_size=self.batch_size, **options) if pairs else torch.empty(0)
        return [part.tolist() for part in scores.float().cpu().split([len(texts) for texts in documents])]


class E2RankTeacher(Teacher):
    """A model that reranks listwise; labels are its cosines.

    Args:
        model: :class:`~e2rank_st.model.E2Rank`, or any Sentence-Transformers model with its ``rerank``.
        candidate_order: Order that chooses the documents of the prompt. Slates list known positives first; only the
            default, ``"similarity"``, hides this order from the teacher.
        **options: Further options of ``rerank``.

    Raises:
        ValueError: The model cannot rerank.
    """

    def __init__(self, model: SentenceTransformer, *, candidate_order: str = "similarity", **options: Any) -> None:
        if not hasattr(model, "rerank"):
            raise ValueError("The model cannot rerank; give an E2Rank model.")
        self._rerank: Any = model.rerank
        self.options = {"show_progress_bar": False, **options, "candidate_order": candidate_order}

    def label_batch(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the cosines of B slates; each distinct text is embedded once."""
        rankings = self._rerank(list(queries), [list(texts) for texts in documents], **self.options)
        scores = ({hit["corpus_id"]: hit["score"] for hit in ranking} for ranking in rankings)
        return [[found[place] for place in range(len(found))] for found in scores]


class EmbeddingTeacher(Teacher):
    """A stronger embedding model; labels are cosines to the query.

    Slates share passages, so the teacher embeds each distinct text once and keeps its vector.

    Args:
        model: Any Sentence-Transformers model.
        batch_size: Texts in a forward pass.
    """

    def __init__(self, model: SentenceTransformer, *, batch_size: int = 32) -> None:
        self.model = model
        self.batch_size = batch_size
        self._kept: dict[str, dict[str, Tensor]] = {"query": {}, "document": {}}

    def label_batch(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the cosines of B slates."""
        query_vectors = self._vectors("query", queries)
        document_vectors = self._vectors("document", [text for texts in documents for text in texts])
        return [
            (torch.stack([document_vectors[text] for text in texts]) @ query_vectors[query]).tolist()
            for query, texts in zip(queries, documents, strict=True)
        ]

    def _vectors(self, kind: Literal["query", "document"], texts: Sequence[str]) -> dict[str, Tensor]:
        """Return unit vectors in float32 of these texts and all earlier ones."""
        kept = self._kept[kind]
        if fresh := list(dict.fromkeys(text for text in texts if text not in kept)):
            vectors = embed_distinct(self.model, fresh, kind, batch_size=self.batch_size, show_progress_bar=False)
            kept |= zip(fresh, torch.from_numpy(vectors), strict=True)
        return kept


def label_slates(
    slates: Iterable[Slate],
    teacher: Teacher,
    *,
    batch_size: int = 32,
    seed: int | None = 0,
    skip_failures: bool = False,
    total: int | None = None,
    show_progress_bar: bool | None = None,
) -> Iterator[Slate]:
    """Replace the labels of slates by a teacher's labels. Gold documents stay gold.

    Args:
        slates: The slates; at most ``batch_size`` slates are taken ahead.
        teacher: The teacher.
        batch_size: Slates that the teacher gets together.
        seed: The teacher sees the documents in an order drawn from this seed and the query. Slates list known
            positives first, and a listwise teacher favours the first places. None keeps the order, for example for
            lists of a first stage.
        skip_failures: Leave out slates without a usable answer of the teacher (AnswerError), and log their number. An
            unreachable endpoint is still an error.
        total: Number of slates, for the progress bar.
        show_progress_bar: Whether to show a bar; by default if this logger's level is INFO or lower.

    Yields:
        The slates, in their order.

    Raises:
        TeacherError: The teacher failed.
        DataError: The teacher gave a wrong number of labels, or a label that is not finite.
    """
    rest, failed = iter(slates), 0
    wanted = progress_wanted(show_progress_bar, logger)
    with tqdm(total=total, desc="label", unit="slate", disable=not wanted) as progress:
        while batch := list(islice(rest, batch_size)):
            labelled = _labelled(batch, teacher, seed, skip_failures)
            failed += labelled.count(None)
            yield from filter(None, labelled)
            progress.update(len(batch))
    if failed:
        logger.warning("Left out %d slates, because the teacher's answer was not usable.", failed)


def _labelled(batch: Sequence[Slate], teacher: Teacher, seed: int | None, skip_failures: bool) -> list[Slate | None]:
    """Return the slates with new labels, or None for a slate that the teacher could not label."""
    orders = [list(range(len(slate))) for slate in batch]
    if seed is not None:
        for slate, order in zip(batch, orders, strict=True):
            random.Random(f"{seed}\n{slate.query}").shuffle(order)
    shown = [[slate.documents[place] for place in order] for slate, order in zip(batch, orders, strict=True)]
    queries = [slate.query for slate in batch]
    labels: list[list[float] | None]
    try:
        labels = [*teacher.label_batch(queries, shown)]
    except AnswerError:
        if not skip_failures:
            raise
        labels = [_label_or_none(teacher, *slate) for slate in zip(queries, shown, strict=True)]
    return [
        None if given is None else _with_labels(slate, order, given)
        for slate, order, given in zip(batch, orders, labels, strict=True)
    ]


def _label_or_none(teacher: Teacher, query: str, documents: Sequence[str]) -> list[float] | None:
    try:
        return teacher.label(query, documents)
    except AnswerError as error:
        logger.info("No labels for %r: %s", query, error)
        return None


def _with_labels(slate: Slate, order: Sequence[int], labels: Sequence[float]) -> Slate:
    given = dict(zip(order, labels, strict=False))
    # The slate refuses a tuple of the wrong length, with too few labels or too many.
    return replace(slate, labels=(*(given[place] for place in sorted(given)), *labels[len(order) :]))
