"""Queries with candidates and judgements, checked against each other.

Whatever does not fit together is refused here, since it would score zero without a word later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

__all__ = ["Candidates", "Case", "some"]

PUBLISHED_WORDS = 1024  # of a document, in the evaluation of the paper


@dataclass(frozen=True)
class Case:
    """A query with its N candidates.

    Attributes:
        ids: Ids of the candidates, best first.
        documents: Their texts.
        scores: Their scores by the first stage, descending.

    Raises:
        ValueError: A document comes twice, or the scores are not descending.
    """

    query_id: str
    query: str
    ids: tuple[str, ...]
    documents: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check what would be scored silently wrong."""
        if (twice := _twice(self.ids)) is not None:
            raise ValueError(f"Query {self.query_id!r} has the candidate {twice!r} twice; give each document once.")
        for better, score in zip(self.scores, self.scores[1:], strict=False):
            if score > better:
                raise ValueError(
                    f"Query {self.query_id!r}: a candidate with score {score} follows one with {better}; "
                    "sort candidates by score, the best first."
                )

    def limited(self, top_n: int, excluded: frozenset[str] = frozenset()) -> Case:
        """The best ``top_n`` candidates that are not excluded."""
        kept = list(islice((place for place, id_ in enumerate(self.ids) if id_ not in excluded), top_n))
        return replace(
            self,
            ids=tuple(self.ids[place] for place in kept),
            documents=tuple(self.documents[place] for place in kept),
            scores=tuple(self.scores[place] for place in kept),
        )


@dataclass(frozen=True)
class Candidates:
    """Queries with candidates and judgements.

    Attributes:
        cases: The queries.
        judgements: Grades of documents by query, by id.
        first_stage: Name of the first stage.
        local: Whether the data was read from files of the user's own.
        partial: Whether these are some of the queries only.
        sources: SHA-256 of each file, or the state of a folder, by its name.
    """

    cases: tuple[Case, ...]
    judgements: Mapping[str, Mapping[str, int]]
    first_stage: str
    local: bool = True
    partial: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    def checked(self, *, judged_only: bool = False) -> Candidates:
        """Check that cases and judgements are of the same queries and the same documents.

        Raises:
            ValueError: They are not.
        """
        ids = [case.query_id for case in self.cases]
        if (twice := _twice(ids)) is not None:
            raise ValueError(f"The query {twice!r} comes twice among the candidates; give each query once.")
        judged = {query for query, grades in self.judgements.items() if grades}
        cases = tuple(case for case in self.cases if case.query_id in judged)
        if not cases:
            raise ValueError(
                f"None of {len(ids)} queries is judged: candidates have ids such as {some(ids)}, "
                f"judgements {some(judged)}. Are they of the same test set?"
            )
        if len(cases) < len(ids) and not judged_only:
            unjudged = [id_ for id_ in ids if id_ not in judged]
            raise ValueError(
                f"{len(unjudged)} of {len(ids)} queries have no judgements: {some(unjudged)}. "
                "Leave them out with --judged-only."
            )
        missing = judged.difference(ids)
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(judged)} judged queries have no candidates: {some(missing)}. "
                "Give the first stage's results for all of them."
            )
        if not any(self.judgements[case.query_id].keys() & set(case.ids) for case in cases):
            grades = self.judgements[cases[0].query_id]
            raise ValueError(
                f"No candidate of any query is judged: candidates have ids such as {some(cases[0].ids)}, "
                f"judgements {some(grades)}. Are they of the same corpus?"
            )
        return replace(self, cases=cases)

    def limited(self, queries: int | None) -> Candidates:
        """The first queries only; it is partial if that leaves any out."""
        if queries is None or queries >= len(self.cases):
            return self
        return replace(self, cases=self.cases[:queries], partial=True)

    def as_published(self) -> Candidates:
        """Rewrite each document as the paper's evaluation does: its first words, with single spaces between them.

        The name of the first stage says so. Tables then do not mix these results with those of whole documents.
        """
        cases = (
            replace(case, documents=tuple(" ".join(text.split()[:PUBLISHED_WORDS]) for text in case.documents))
            for case in self.cases
        )
        return replace(self, cases=tuple(cases), first_stage=f"{self.first_stage}-published")


def _twice(ids: Sequence[str]) -> str | None:
    """The first id that comes again, if any."""
    return next((id_ for id_, number in Counter(ids).items() if number > 1), None)


def some(ids: Iterable[str]) -> str:
    """A few ids, for messages."""
    return ", ".join(map(repr, sorted(ids)[:3])) or "none"
