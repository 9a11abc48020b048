"""Queries, a corpus and judgements → slates of judged documents and mined candidates.

Candidates are the documents that a base model finds nearest to a query, without likely positives that nobody marked. A
likely positive has the same text as a judged document, a score like the positive's (``relative_margin``), or nearly the
positive's content (``max_positive_similarity``; ``search.exact`` applies both). Labelled 0, they are hard negatives.

Sentence-Transformers' own miner, ``mine_hard_negatives``, does not fit. It scores a chunk of queries against the whole
corpus at once. It filters after the search, so a query may get too few candidates. It knows neither grades nor
documents that resemble the positive, and an interrupted run starts from the beginning. ``semantic_search`` does not
apply rules. The margin is defined as in ``mine_hard_negatives``.

Axes: B queries, N documents, D dimensions, K candidates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import tqdm

from e2rank_st.console import progress_wanted
from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.slates import DataError, Slate
from e2rank_st.labelling.heldout import plain
from e2rank_st.search.exact import Rules, nearest
from e2rank_st.search.vectors import Matrix, Rows, unit_rows
from e2rank_st.storage import read_json, replacing, write_json

__all__ = ["MiningSettings", "mine"]

logger = logging.getLogger(__name__)

QUERIES_AT_ONCE = 1024  # in one part of a run; a restart resumes after the last part
TEXTS_AT_ONCE = 16_384  # embedded at a time, and kept for a restart
SAME_VECTOR = 1e-3  # largest difference from 1 of the cosine of two embeddings of a text


@dataclass(frozen=True)
class MiningSettings:
    """Rules for candidates.

    Attributes:
        num_candidates: Most candidates of a query, beside its judged documents.
        relative_margin: Least distance of a candidate's cosine below that of the worst gold positive, as a share of the
            latter: 0.05 allows up to 95 %.
        max_positive_similarity: Highest cosine to any gold positive; above it, a candidate has the same content.
        gold_from: Least grade of a gold positive. NIST calls a passage relevant from 2.
        unjudged: Label candidates None instead of 0.

    Raises:
        ValueError: A value is not allowed.
    """

    num_candidates: int = 15
    relative_margin: float | None = None
    max_positive_similarity: float | None = None
    gold_from: float = 1
    unjudged: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {self.num_candidates}.")


def mine(
    model: SentenceTransformer,
    collection: JudgedCorpus,
    settings: MiningSettings | None = None,
    *,
    source: str = "",
    parts: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> Iterator[Slate]:
    """Mine candidates for the judged queries of a collection.

    A slate first holds the query's judged documents with their grades, in the order of the judgements. Then come its
    candidates, nearest first, labelled 0 or None. A candidate's text appears once, and not among the judged documents.

    Args:
        model: The base model, with ``encode_query`` and ``encode_document``. Products are computed on its device.
        collection: Corpus, queries and judgements. A query without judged documents, ``{}``, gets candidates only.
        settings: Rules for candidates.
        source: Name of the data set, for the slates.
        parts: A folder for vectors and finished chunks. An interrupted run resumes there, with the same result as an
            unbroken run. Delete the folder after the slates are written.
        batch_size: Texts in a forward pass.
        show_progress_bar: Whether to show progress bars; by default if this logger's level is INFO or lower.

    Returns:
        The slates, in the order of the judgements. One chunk of queries is mined at a time.

    Raises:
        ValueError: A judgement lacks its text, or the folder belongs to a run with different data, settings or model.
            Vectors that are not finite are found while mining.
        DataError: A query or a judged document is empty; found while mining.
    """
    options = {"batch_size": batch_size, "show_progress_bar": progress_wanted(show_progress_bar, logger)}
    return _Miner(model, collection, settings or MiningSettings(), parts, options).slates(source)


class _DistinctTexts:
    """The distinct texts of a corpus, as rows, and the row of each id. Empty texts do not get a row.

    Texts are the same if they differ in case or white space only. A digest of each text is held, not the text.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        rows: dict[bytes, int] = {}
        self.row_of: dict[str, int] = {}
        self.ids: list[str] = []  # (rows,) the first id with a row's text
        digest = hashlib.sha256()
        for id_, text in texts.items():
            digest.update(json.dumps([id_, text]).encode())
            same = plain(text)
            if not same:
                continue
            row = rows.setdefault(hashlib.blake2b(same.encode(), digest_size=16).digest(), len(rows))
            if row == len(self.ids):
                self.ids.append(id_)
            self.row_of[id_] = row
        self.sha256 = digest.hexdigest()


class _Miner:
    """A run: the arguments of :func:`mine`, and values that are computed from them once."""

    def __init__(
        self,
        model: SentenceTransformer,
        collection: JudgedCorpus,
        settings: MiningSettings,
        parts: str | os.PathLike[str] | None,
        options: Mapping[str, Any],
    ) -> None:
        self.model = model
        self.collection = collection
        self.settings = settings
        self.options = options
        self.query_ids = list(collection.judgements)
        self.corpus = _DistinctTexts(collection.corpus)
        _check_texts(collection)
        if not self.corpus.ids:
            raise ValueError("The corpus holds no text; give at least one document that is not empty.")
        self.parts = _Parts(None if parts is None else Path(parts), self._description())
        self._check_model()

    def slates(self, source: str) -> Iterator[Slate]:
        """Yield the slates, chunk by chunk."""
        size, silent = QUERIES_AT_ONCE, not self.options["show_progress_bar"]
        with tqdm(total=len(self.query_ids), desc="mine", unit="query", disable=silent) as progress:
            for start in range(0, len(self.query_ids), size):
                ids = self.query_ids[start : start + size]
                found = self.parts.array(f"candidates-{start // size:05}", partial(self._candidates, start))
                for query, rows in zip(ids, found.tolist(), strict=True):
                    yield self._slate(query, [row for row in rows if row >= 0], source)
                progress.update(len(ids))

    def _slate(self, query: str, rows: Sequence[int], source: str) -> Slate:
        """Return a slate of judged documents, then mined ones."""
        grades = self.collection.judgements[query]
        label = None if self.settings.unjudged else 0.0
        texts = self.collection.corpus
        try:
            return Slate(
                self.collection.queries[query],
                (*(texts[id_] for id_ in grades), *(texts[self.corpus.ids[row]] for row in rows)),
                (*grades.values(), *(label for _ in rows)),
                (*(grade >= self.settings.gold_from for grade in grades.values()), *(False for _ in rows)),
                source,
            )
        except DataError as error:
            raise error.at(f"query {query!r}") from error.__cause__

    def _candidates(self, start: int) -> Rows:
        """Return the neighbours of a chunk of queries, (B, K); -1 fills the places after the last."""
        ids = self.query_ids[start : start + QUERIES_AT_ONCE]
        vectors = self.query_vectors[start : start + len(ids)]
        found = np.full((len(ids), self.settings.num_candidates), -1, np.int64)
        rules = self._rules(ids, vectors)
        neighbours = nearest(vectors, self.vectors, len(found[0]), rules=rules, device=self.model.device)
        for row, near in zip(found, neighbours, strict=True):
            row[: len(near.rows)] = near.rows
        return found

    def _rules(self, ids: Sequence[str], vectors: Matrix) -> Rules:
        judged = [self._rows(self.collection.judgements[query]) for query in ids]
        gold = [self._rows(self._gold(query)) for query in ids]
        limits = [self._limit(vector, rows) for vector, rows in zip(vectors, gold, strict=True)]
        return Rules(
            judged,
            limits=np.array(limits, np.float64),
            positives=gold,
            max_positive_similarity=self.settings.max_positive_similarity,
        )

    def _limit(self, query: Matrix, gold: Rows) -> float:
        """Return the highest cosine to the query that a candidate may have."""
        if self.settings.relative_margin is None or not len(gold):
            return float(np.inf)
        positive = float((self.vectors[gold].astype(np.float64) * query.astype(np.float64)).sum(axis=1).min())
        # The absolute value: a share of a negative cosine would raise the limit.
        return positive - abs(positive) * self.settings.relative_margin

    def _rows(self, ids: Iterable[str]) -> Rows:
        return np.array(sorted({self.corpus.row_of[id_] for id_ in ids if id_ in self.corpus.row_of}), np.int64)

    def _gold(self, query: str) -> list[str]:
        grades = self.collection.judgements[query]
        return [id_ for id_, grade in grades.items() if grade >= self.settings.gold_from]

    @cached_property
    def vectors(self) -> Matrix:
        """Unit vectors of the distinct texts, (rows, D)."""
        return self._embedded("documents", self.model.encode_document, self.corpus.ids, self.collection.corpus)

    @cached_property
    def query_vectors(self) -> Matrix:
        """Unit vectors of the queries, (queries, D)."""
        return self._embedded("queries", self.model.encode_query, self.query_ids, self.collection.queries)

    def _embedded(self, name: str, encode: Callable[..., Any], ids: Sequence[str], texts: Mapping[str, str]) -> Matrix:
        # Chunks have a fixed size: the batch around a text changes the last bits of its vector.
        def embed(start: int) -> Matrix:
            chunk = [texts[id_] for id_ in ids[start : start + TEXTS_AT_ONCE]]
            return unit_rows(encode(chunk, **self.options))

        starts = range(0, len(ids), TEXTS_AT_ONCE)
        return np.concatenate(
            [self.parts.array(f"{name}-{number:05}", partial(embed, start)) for number, start in enumerate(starts)]
        )

    def _description(self) -> dict[str, Any]:
        """Describe everything that determines the result, except the weights."""
        judged = hashlib.sha256()
        for query, grades in self.collection.judgements.items():
            judged.update(json.dumps([query, self.collection.queries[query], dict(grades)]).encode())
        return {
            "settings": asdict(self.settings),
            "corpus": self.corpus.sha256,
            "judgements": judged.hexdigest(),
            "model": {"prompts": self.model.prompts, "max_seq_length": self.model.max_seq_length},
            "batch_size": self.options["batch_size"],
        }

    def _check_model(self) -> None:
        """Refuse parts made with different weights. A few vectors show that; names and paths do not."""
        if self.parts.folder is None or not (self.parts.folder / "queries-00000.npy").exists():
            return
        stored = self.query_vectors[:3]
        texts = [self.collection.queries[id_] for id_ in self.query_ids[:3]]
        again = unit_rows(self.model.encode_query(texts, show_progress_bar=False))
        if stored.shape != again.shape or ((stored * again).sum(axis=1) < 1 - SAME_VECTOR).any():
            raise ValueError(f"{self.parts.folder} holds parts of a different model; delete it, or give a new folder.")


class _Parts:
    """Arrays that are computed once; a folder, if given, keeps them for a restart."""

    def __init__(self, folder: Path | None, description: Mapping[str, Any]) -> None:
        self.folder = folder
        if folder is None:
            return
        target, description = folder / "mining.json", json.loads(json.dumps(description))
        if not target.exists():
            write_json(target, description)
        found = read_json(target)
        others = [name for name in description if found.get(name) != description[name]]
        if others:
            raise ValueError(
                f"{folder} holds parts of a run with different {', '.join(others)}; delete it, or give a new folder."
            )

    def array(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the kept array of this name, or make one and keep it."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.npy"
        if not path.exists():
            value = make()
            with replacing(path) as fresh, fresh.open("wb") as file:
                np.save(file, value, allow_pickle=False)
        kept: NDArray[Any] = np.load(path, allow_pickle=False)
        return kept


def _check_texts(collection: JudgedCorpus) -> None:
    """Refuse judgements of missing texts, before anything is embedded."""
    for query, grades in collection.judgements.items():
        missing = [id_ for id_ in grades if id_ not in collection.corpus]
        if query not in collection.queries or missing:
            what = f"document {missing[0]!r} of query {query!r}" if missing else f"query {query!r}"
            raise ValueError(f"The judgements name {what}, which lacks a text; add it, or remove the judgement.")
