"""Documents and queries of evaluation sets → training data without them.

Texts are compared, because a corpus may hold a text under several ids, and two corpora share texts but not ids. Case
and white space do not count. A document is compared with its title and without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.slates import Slate

__all__ = ["HeldOut", "plain"]

logger = logging.getLogger(__name__)


def plain(text: str) -> str:
    """Return a text in the form in which copies of it are equal: single spaces, without case."""
    return " ".join(text.split()).casefold()


@dataclass(frozen=True)
class HeldOut:
    """What training must not see.

    Attributes:
        documents: Plain texts of documents, with and without their titles.
        queries: Plain texts of queries.
    """

    documents: set[str] = field(default_factory=set)
    queries: set[str] = field(default_factory=set)

    def add_split(self, folder: str | os.PathLike[str], split: str) -> None:
        """Add the judged documents and the queries of one split of a BEIR folder."""
        for titles in (True, False):
            whole = JudgedCorpus.load(folder, split, titles=titles)
            self.documents.update(plain(whole.corpus[id_]) for grades in whole.judgements.values() for id_ in grades)
            self.queries.update(plain(whole.queries[id_]) for id_ in whole.judgements)

    def add_folder(self, folder: str | os.PathLike[str], split: str) -> None:
        """Add the whole corpus of a BEIR folder, and the queries of all of its splits; ``split`` is one of these."""
        for titles in (True, False):
            whole = JudgedCorpus.load(folder, split, titles=titles)
            self.documents.update(map(plain, whole.corpus.values()))
            self.queries.update(map(plain, whole.queries.values()))

    def unseen(self, folder: str | os.PathLike[str], split: str = "train") -> JudgedCorpus:
        """Read a split of a BEIR folder without what is held out, and log how much that was.

        Queries with the same text become one, which is judged as all of them. Otherwise an answer that is known under
        a different id would be taken for a wrong one. A query without a judged document left is left out, too.
        """
        whole, bare = (JudgedCorpus.load(folder, split, titles=titles) for titles in (True, False))
        corpus = {
            id_: text
            for (id_, text), body in zip(whole.corpus.items(), bare.corpus.values(), strict=True)
            if plain(text) not in self.documents and plain(body) not in self.documents
        }
        first: dict[str, str] = {}
        judgements: dict[str, dict[str, float]] = {}
        held = 0
        for query, grades in whole.judgements.items():
            text = plain(whole.queries[query])
            held += text in self.queries
            left = {id_: grade for id_, grade in grades.items() if id_ in corpus}
            if left and text not in self.queries:
                known = judgements.setdefault(first.setdefault(text, query), {})
                known.update({id_: max(grade, known.get(id_, grade)) for id_, grade in left.items()})
        self._log(Path(folder).name, len(whole.corpus) - len(corpus), len(whole.corpus), held, len(whole.judgements))
        logger.info("%s: %d distinct queries with a judged document", Path(folder).name, len(judgements))
        return JudgedCorpus(corpus, whole.queries, judgements)

    def unseen_slates(self, slates: Iterable[Slate], name: str) -> Iterator[Slate]:
        """Yield slates without held-out documents and queries; log how many there were after the last one."""
        total = documents = held = seen = 0
        for slate in slates:
            seen, total = seen + 1, total + len(slate)
            rows = zip(slate.documents, slate.labels, slate.gold, strict=True)
            left = [row for row in rows if plain(row[0]) not in self.documents]
            documents += len(slate) - len(left)
            if plain(slate.query) in self.queries:
                held += 1
            elif left:
                texts, labels, gold = zip(*left, strict=True)
                yield Slate(slate.query, texts, labels, gold, source=slate.source)
        self._log(name, documents, total, held, seen)

    def _log(self, name: str, documents: int, of_documents: int, queries: int, of_queries: int) -> None:
        logger.info(
            "%s: left out %d of %d documents and %d of %d queries, which evaluation sets hold",
            *(name, documents, of_documents, queries, of_queries),
        )
