"""A collection that lasts: documents are embedded once, found again, and reranked with their stored vectors.

Adding is safe to repeat: a document that the index has already is neither embedded nor written again. So a call that
was interrupted goes on where it was, when it is made again.

Axes: B queries, P passages of one document, D dimensions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, overload

import numpy as np
from transformers.utils.logging import tqdm
from typing_extensions import Self, Unpack

from e2rank_st.arguments_e2rank import flag, natural, one_of, share, strings
from e2rank_st.console import progress_wanted
from e2rank_st.documents_e2rank import join_fields
from e2rank_st.passages_e2rank import LONG_DOCUMENTS
from e2rank_st.search.hits import Candidates
from e2rank_st.search.maker import Fingerprint, Maker, describe, listwise_of
from e2rank_st.search.memory import MemoryStore
from e2rank_st.search.records import Record, entries, grouped, number_of, records
from e2rank_st.search.reranking import rerank_candidates
from e2rank_st.search.store import FIRST_STAGES, VECTOR_INDEXES, Entry, FirstStage, Found, Store, VectorIndex, Where
from e2rank_st.search.vectors import Matrix, embed_distinct, unit_rows

__all__ = ["Changes", "SearchIndex", "SearchOptions"]

logger = logging.getLogger(__name__)

FORMAT = 1
DTYPES = ("float16", "float32")
# Documents of a write: an interruption costs no more. A version lists all files, so a large index has fewer writes.
PART_DOCUMENTS, MOST_DOCUMENTS = 256, 8_192


class SearchOptions(TypedDict, total=False):
    """Keyword arguments of ``search``; those of reranking stand for what the model has configured."""

    first_stage: FirstStage
    where: Where
    rerank: bool
    min_similarity: float | None
    instruction: str | None
    num_prompt_documents: int | None
    candidate_order: str | None
    query_weight: float | None
    first_stage_weight: float | None
    batch_size: int


class Changes(NamedTuple):
    """What a call did to an index.

    Attributes:
        embedded: Documents that are new, or have a new text.
        rewritten: Documents that kept their vectors and have new fields.
        unchanged: Documents that the index had already.
    """

    embedded: int = 0
    rewritten: int = 0
    unchanged: int = 0


class SearchIndex:
    """Documents with ids, fields and vectors, and the model that made the vectors.

    Use :meth:`create` or :meth:`open`.

    Args:
        store: Keeps the documents.
        settings: What all documents of the index share: see :meth:`create`.
        model: The model; None for an index that is only looked at.
    """

    def __init__(self, store: Store, settings: Mapping[str, Any], model: Any = None) -> None:
        self.store = store
        self.settings = settings
        self.model = model
        self._checked: Maker | None = None if model is None else describe(model)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        model: Any,
        documents: Any = (),
        *,
        long_documents: Literal["cut", "passages"] | None = None,
        dtype: Literal["float16", "float32"] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> Self:
        """Make an index of documents. If the path has one already, add the documents to it: see :meth:`add`.

        Args:
            path: A folder, or the address of an object store as LanceDB reads it (``s3://...``). None keeps the index
                in memory, with exact search of vectors only.
            model: A model with ``rerank``: an E2Rank, or a Sentence-Transformers model that was saved by one.
            documents: As for :meth:`add`.
            long_documents: What becomes of a document that has more tokens than the model embeds: ``"cut"`` keeps its
                start, ``"passages"`` a vector for each passage. By default as in the index, or ``"cut"``.
            dtype: Type of the stored vectors; by default as in the index, or ``"float16"``.
            batch_size: Texts in a forward pass.
            show_progress_bar: Whether to show a bar on stderr; by default, the level of this logger decides.

        Raises:
            ValueError: An argument is not allowed, or the index in the path has a different model or other settings.
            DataError: A document is bad. Those before it are in the index.
            OSError: The folder cannot be written.
            ImportError: A path is given and LanceDB is missing.
        """
        wanted = {
            name: value for name, value in (("long_documents", long_documents), ("dtype", dtype)) if value is not None
        }
        for name, allowed in (("long_documents", LONG_DOCUMENTS), ("dtype", DTYPES)):
            one_of(name, wanted.get(name, allowed[0]), allowed)
        if path is not None and (found := cls._found(path)) is not None:
            for name, value in wanted.items():
                if (old := found.settings[name]) != value:
                    raise ValueError(f"{path} has an index with {name}={old!r}, and got {value!r}. Give another path.")
            index = cls.open(path, model)
        else:
            index = cls._new(path, model, wanted)
        index.add(documents, batch_size=batch_size, show_progress_bar=show_progress_bar)
        return index

    @classmethod
    def from_vectors(cls, model: Any, documents: Any, vectors: Any) -> Self:
        """Make an index in memory of documents whose vectors are known.

        Args:
            model: The model that made the vectors.
            documents: N documents, as for :meth:`add`.
            vectors: Their vectors, (N, D).

        Raises:
            ValueError: An argument is not allowed, or the numbers of documents and vectors differ.
            DataError: A document is bad.
        """
        index, rows = cls._new(None, model, {}), unit_rows(vectors, "vectors")
        given = list(records(documents))
        if rows.shape != (len(given), model.get_embedding_dimension()):
            raise ValueError(
                f"Got vectors of the shape {rows.shape} for {len(given)} documents; give one row for each."
            )
        index.store.add([Entry(record, rows[row : row + 1]) for row, record in enumerate(given)])
        return index

    @classmethod
    def _new(cls, path: str | os.PathLike[str] | None, model: Any, wanted: Mapping[str, str]) -> Self:
        template = listwise_of(model).document_template
        settings = {"long_documents": "cut", "dtype": "float16", "document_template": template, **wanted}
        if path is None:
            return cls(MemoryStore(), settings, model)
        from e2rank_st.search.lance import LanceStore

        about = {
            "format": FORMAT, "model": getattr(model, "name", None), **settings, **Fingerprint.of(model).as_dict(),
        }  # fmt: skip
        store = LanceStore.create(
            _place(path),
            about,
            model.get_embedding_dimension(),
            dtype=settings["dtype"],
            passages=settings["long_documents"] == "passages",
        )
        return cls(store, about, model)

    @classmethod
    def _found(cls, path: str | os.PathLike[str]) -> Self | None:
        try:
            return cls.open(path)
        except FileNotFoundError:
            return None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: Any = None,
        *,
        force: bool = False,
        version: int | None = None,
    ) -> Self:
        """Open the index of a folder or an address.

        Args:
            path: As for :meth:`create`.
            model: The model that made it; without one, the index can be looked at, but not searched.
            force: Whether to take a model that gives other vectors.
            version: Number of an earlier version, to read it; by default, the last one.

        Raises:
            FileNotFoundError: There is no index.
            ValueError: The model gives other vectors; the message names the difference.
            OSError: The index cannot be read.
            ImportError: LanceDB is missing.
        """
        from e2rank_st.search.lance import LanceStore

        store = LanceStore.open(_place(path), version)
        about = store.about
        if about.get("format") != FORMAT:
            raise ValueError(
                f"The index in {path} has the format {about.get('format')}, and this version reads {FORMAT}."
            )
        if model is not None:
            listwise_of(model)
            if not force:
                Fingerprint.from_dict(about).check(model)
        return cls(store, about, model)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.store)

    def add(
        self, documents: Any, *, batch_size: int = 32, show_progress_bar: bool | None = None, optimize: bool = True
    ) -> Changes:
        """Add documents. One with a known id replaces the old one; what is equal stays as it is.

        Args:
            documents: A path object of a file (JSON lines, CSV, parquet, a document a line) or of a folder of text
                files. Or texts, or mappings with ``text`` and perhaps ``id``, ``title`` and further fields: in a list,
                a generator, a column, a data set, or a table. A document without an id is named by a hash of its text.
            batch_size: Texts in a forward pass.
            show_progress_bar: Whether to show a bar on stderr; by default, the level of this logger decides.
            optimize: Whether to call :meth:`optimize` at the end. Leave it out if many small calls follow each other.

        Returns:
            How many documents were embedded, rewritten, or there already.

        Raises:
            ValueError: The documents are not of such a form, or the model has changed.
            DataError: A document is bad. Those before it are in the index.
            OSError: A file cannot be read, or the index not written.
        """
        self._check_model()
        batch_size = natural("batch_size", batch_size, least=1)
        total = number_of(documents)
        changes = Changes()
        shown = progress_wanted(show_progress_bar, logger)
        with tqdm(total=total, desc="index", unit=" documents", disable=not shown) as progress:
            for part in grouped(records(documents), self._part_size):
                found = self._add(list({record.id: record for record in part}.values()), batch_size)
                changes = Changes(*map(sum, zip(changes, found, strict=True)))
                progress.update(len(part))
        if optimize and any(changes):  # also of an earlier call that was stopped before it
            self.optimize()
        return changes

    def _part_size(self) -> int:
        return min(MOST_DOCUMENTS, max(PART_DOCUMENTS, len(self) // 100))

    def _add(self, part: list[Record], batch_size: int) -> Changes:
        known = self.store.get([record.id for record in part])
        changed = [record for record in part if record.id not in known or known[record.id].record != record]
        kept: list[Record] = []
        fresh: list[Record] = []
        for record in changed:
            old = known.get(record.id)
            is_same = old is not None and (old.record.title, old.record.text) == (record.title, record.text)
            (kept if is_same else fresh).append(record)
        vectors = self._embed([self.text(record) for record in fresh], batch_size)
        made = [Entry(record, known[record.id].vectors) for record in kept]
        made += map(Entry, fresh, vectors)
        if made:
            self.store.add(made)
        return Changes(len(fresh), len(kept), len(part) - len(changed))

    def update(self, documents: Any) -> Changes:
        """Change documents that the index has: what a mapping does not name stays, and None removes a field.

        Args:
            documents: Mappings with ``id``, in anything that :meth:`add` takes. A new text is embedded.

        Raises:
            ValueError: An id is not in the index.
        """
        given: dict[str, dict[str, Any]] = {}
        for number, document in enumerate(entries(documents)):
            if not isinstance(document, Mapping) or "id" not in document:
                raise ValueError(f"documents[{number}] must be a mapping with 'id', got {document!r:.80}.")
            given.setdefault(str(document["id"]), {}).update(document)
        known = self.get(list(given))
        if missing := [id_ for id_ in given if id_ not in known]:
            raise ValueError(f"{len(missing)} ids are not in the index, as {missing[0]!r:.80}. Use add for new ones.")
        return self.add([{**known[id_].as_dict(), **document} for id_, document in given.items()])

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """Find documents by their ids; an unknown id is left out."""
        return {id_: entry.record for id_, entry in self.store.get(strings("ids", ids)).items()}

    def delete(self, ids: Iterable[str]) -> None:
        """Remove documents by their ids; an unknown id is left out.

        Raises:
            OSError: The index cannot be written.
        """
        self.store.delete(strings("ids", ids))

    def optimize(self, vector_index: VectorIndex = "auto") -> None:
        """Join small files, and bring the indexes of words and vectors up to date. :meth:`add` does it at its end.

        Args:
            vector_index: How to find near vectors: ``"exact"`` compares all of them, ``"int8"`` and ``"rabitq"`` (one
                bit a dimension, arXiv 2405.12497) some, by small copies. ``"auto"`` keeps what there is, and chooses
                ``"int8"`` for a large collection. An index in memory is always exact.

        Raises:
            ValueError: It is none of them.
            OSError: The index cannot be written.
        """
        one_of("vector_index", vector_index, VECTOR_INDEXES)
        self.store.optimize(vector_index)

    @overload
    def search(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
        self, queries: str, top_k: int = ..., num_candidates: int = ..., **options: Unpack[SearchOptions]
    ) -> list[dict[str, Any]]: ...

    @overload
    def search(
        self, queries: Sequence[str], top_k: int = ..., num_candidates: int = ..., **options: Unpack[SearchOptions]
    ) -> list[list[dict[str, Any]]]: ...

    def search(
        self,
        queries: Any,
        top_k: int = 10,
        num_candidates: int = 100,
        *,
        first_stage: FirstStage = "vector",
        where: Where = None,
        rerank: bool = True,
        min_similarity: float | None = None,
        **options: Any,
    ) -> Any:
        """Retrieve candidates, and rerank them listwise with their stored vectors: two forward passes a query.

        Args:
            queries: One query, or B queries.
            top_k: Number of results for each query.
            num_candidates: Number of candidates to rerank for each query.
            first_stage: Candidates are the nearest by vectors, the best by BM25 of the words, or the best of both lists
                (``"hybrid"``, by reciprocal ranks).
            where: A condition on fields: ``{"lang": "en", "year": [2023, 2024]}``; or, on disk, SQL of LanceDB
                (``"year > 2020"``) or one of its expressions. Put values of strangers into the mapping only.
            rerank: Whether to rerank; else the results of the first stage come.
            min_similarity: Least ``similarity`` of a result.
            **options: Of reranking, instead of what the model has configured.

        Returns:
            Hits, best first; for B queries, B such lists. A hit has ``id``, ``score``, ``similarity`` (the cosine of
            query and document, comparable between queries), ``retrieval_rank`` (from 1) and ``retrieval_score`` of the
            first stage, ``text``, ``title`` and ``fields``.

        Raises:
            ValueError: An argument is not allowed, or the model has changed.
            OSError: The index cannot be read.
        """
        self._check_model()
        single = isinstance(queries, str)
        texts = strings("queries", [queries] if single else queries)
        top_k, count = natural("top_k", top_k), natural("num_candidates", num_candidates)
        one_of("first_stage", first_stage, FIRST_STAGES)
        least = -1.0 if min_similarity is None else share("min_similarity", min_similarity, least=-1)
        if not flag("rerank", rerank) and options:
            raise ValueError(f"{next(iter(options))} is an option of reranking; leave it out with rerank=False.")
        if not texts or not top_k:
            return [] if single else [[] for _ in texts]
        vectors = unit_rows(self.model.encode_query(texts, show_progress_bar=False))  # (B, D)
        count = max(top_k, count) if rerank else top_k
        candidates = self._retrieved(texts, vectors, count, first_stage, where)
        ranked: list[Any] = [None] * len(texts)
        if rerank:
            # Nearest first already: "given" is then the order of similarity.
            order = {"candidate_order": "given"} if first_stage == "vector" else {}
            options = {**order, "long_documents": self.settings["long_documents"], **options}
            ranked = rerank_candidates(self.model, texts, vectors, candidates, self.text, **options)
        hits = [part.hits(ranking, least)[:top_k] for part, ranking in zip(candidates, ranked, strict=True)]
        return hits[0] if single else hits

    def retrieve(
        self, queries: Sequence[str], count: int = 100, *, first_stage: FirstStage = "vector", where: Where = None
    ) -> list[list[Found]]:
        """Find the best documents of each query, as :meth:`search` does, with their stored vectors.

        Raises:
            ValueError: An argument is not allowed, or the model has changed.
            OSError: The index cannot be read.
        """
        self._check_model()
        texts, count = strings("queries", queries), natural("count", count)
        one_of("first_stage", first_stage, FIRST_STAGES)
        if not texts or not count:
            return [[] for _ in texts]
        vectors = unit_rows(self.model.encode_query(texts, show_progress_bar=False))
        return [part.found for part in self._retrieved(texts, vectors, count, first_stage, where)]

    def _retrieved(
        self, queries: list[str], vectors: Matrix, count: int, first_stage: FirstStage, where: Where
    ) -> list[Candidates]:
        found = self.store.search(queries, vectors, count, first_stage, where)
        return [Candidates.of(*row, first_stage) for row in zip(vectors, found, strict=True)]

    def info(self) -> dict[str, Any]:
        """What the index is: number of documents, settings, fields, and the model that made it."""
        kept = {name: value for name, value in self.settings.items() if name not in ("maker", "vectors", "format")}
        more = {
            name: getattr(self.store, name)
            for name in ("fields", "vector_index", "version")
            if hasattr(self.store, name)
        }
        return {"documents": len(self), **kept, **more}

    def _check_model(self) -> None:
        if self.model is None:
            raise ValueError("This index was opened without a model. Open it with SearchIndex.open(path, model).")
        found = describe(self.model)
        if found != self._checked:
            raise ValueError("The model has changed since the index was opened. Open it again with the model.")

    def text(self, record: Record) -> str:
        """The text of a document as it is embedded: its title and its text, joined by the template."""
        return join_fields(record.title, record.text, self.settings["document_template"])

    def _embed(self, texts: list[str], batch_size: int) -> list[Matrix]:
        """The vectors of texts, for each (P, D)."""
        if not texts:
            return []
        if self.settings["long_documents"] == "cut":
            parts = [[text] for text in texts]
        else:
            parts = [listwise_of(self.model).passages(text) for text in texts]
        flat = [passage for passages in parts for passage in passages]
        vectors = embed_distinct(self.model, flat, batch_size=batch_size, show_progress_bar=False)
        splits: list[Matrix] = np.split(vectors, np.cumsum([len(passages) for passages in parts])[:-1])
        return splits


def _place(path: str | os.PathLike[str]) -> str:
    return str(os.fspath(path))
