"""A judged corpus or a long list → smaller ones for training: whole groups, dealt lists, and sentences as claims.

Draws depend on the seed and a name only, so every machine draws the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence, Set

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.slates import Slate

__all__ = ["cut", "deal", "draw_part", "thin", "with_claims", "with_siblings", "without"]

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
CLAIM_WORDS = range(8, 31)  # number of words of a sentence that can be a claim
DROPPED = (0.1, 0.25, 0.4)  # probabilities to leave out a word; each claim draws one of them


def deal(slate: Slate, count: int, size: int, seed: int) -> Iterator[Slate]:
    """Deal a long list out into slates of randomly drawn documents; a short list stays the same.

    Args:
        slate: The list.
        count: Number of slates.
        size: Documents in each slate. A list of at most this size is short.
        seed: Seed of the draws.
    """
    if len(slate) <= size:
        yield slate
        return
    draw = random.Random(f"{seed}\n{slate.query}")
    for _ in range(count):
        yield _part(slate, sorted(draw.sample(range(len(slate)), size)))


def draw_part(
    collection: JudgedCorpus, documents: int, queries: int, seed: str, first: str | None = None
) -> JudgedCorpus:
    """Draw whole groups of documents, then questions that they answer.

    A group holds the documents with the same id before ``#``, and all that are judged for one question.

    Args:
        collection: Documents and questions.
        documents: Groups are drawn until they hold this number of documents.
        queries: Number of questions; each has its answers among the drawn documents.
        seed: Seed of the draws.
        first: Questions that match this regular expression are drawn before the rest.
    """
    draw = random.Random(seed)
    groups = _groups(collection)
    chosen: list[str] = []
    for name in draw.sample(sorted(groups), len(groups)):
        if len(chosen) >= documents:
            break
        chosen += groups[name]
    corpus = {id_: collection.corpus[id_] for id_ in chosen}
    answered = [query for query, grades in collection.judgements.items() if grades.keys() <= corpus.keys()]
    drawn = draw.sample(answered, len(answered))
    if first is not None:
        drawn.sort(key=lambda query: re.search(first, collection.queries[query]) is None)
    judgements = {query: collection.judgements[query] for query in drawn[:queries]}
    return JudgedCorpus(corpus, collection.queries, judgements)


def _groups(collection: JudgedCorpus) -> dict[str, list[str]]:
    """Return the ids of each group, by the least of the names that it joins."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = name = parents.setdefault(parent, parent)
        return name

    for grades in collection.judgements.values():
        names = {root(id_.partition("#")[0]) for id_ in grades}
        for name in names:
            parents[name] = min(names)
    groups: dict[str, list[str]] = {}
    for id_ in collection.corpus:
        groups.setdefault(root(id_.partition("#")[0]), []).append(id_)
    return groups


def without(collection: JudgedCorpus, documents: Set[str]) -> JudgedCorpus:
    """Leave out documents by their ids, their judgements, and queries that have no judgement left."""
    corpus = {id_: text for id_, text in collection.corpus.items() if id_ not in documents}
    judgements = {
        query: {id_: grade for id_, grade in grades.items() if id_ in corpus}
        for query, grades in collection.judgements.items()
    }
    return JudgedCorpus(corpus, collection.queries, {query: grades for query, grades in judgements.items() if grades})


def with_siblings(collection: JudgedCorpus) -> JudgedCorpus:
    """Judge the other documents of an answer's group, the id before ``#``, as 0, so that they are not mined.

    They may answer as well. :func:`cut` with ``judged_wrong=False`` takes them out of the slates again.
    """
    groups: dict[str, list[str]] = {}
    for id_ in collection.corpus:
        groups.setdefault(id_.partition("#")[0], []).append(id_)
    judgements = {}
    for query, grades in collection.judgements.items():
        siblings = {id_: 0.0 for name in {id_.partition("#")[0] for id_ in grades} for id_ in groups[name]}
        judgements[query] = dict(grades) | {id_: 0.0 for id_ in siblings if id_ not in grades}
    return JudgedCorpus(collection.corpus, collection.queries, judgements)


def cut(slate: Slate, size: int, gold: int, seed: int, *, judged_wrong: bool = True) -> Slate:
    """Shorten a mined slate: some of its gold documents, then the rest of its judged ones, then candidates.

    Args:
        slate: The slate, with the nearest candidate first.
        size: Most documents.
        gold: Most gold documents; of more, some are drawn.
        seed: Seed of the draws.
        judged_wrong: Whether to keep judged documents that are not gold.
    """
    golds = [place for place, flag in enumerate(slate.gold) if flag]
    if len(golds) > gold:
        golds = random.Random(f"{seed}\n{slate.query}").sample(golds, gold)
    rest = [place for place, flag in enumerate(slate.gold) if not flag]
    wrong = [place for place in rest if slate.labels[place] is not None and judged_wrong]
    mined = [place for place in rest if slate.labels[place] is None]
    return _part(slate, sorted([*golds, *wrong, *mined][:size]))


def thin(slate: Slate, size: int, seed: int) -> Slate:
    """Draw at most ``size`` documents of a list, in their order."""
    draw = random.Random(f"{seed}\nthin\n{slate.query}")
    return _part(slate, sorted(draw.sample(range(len(slate)), min(size, len(slate)))))


def _part(slate: Slate, places: Sequence[int]) -> Slate:
    rows = [(slate.documents[place], slate.labels[place], slate.gold[place]) for place in places]
    documents, labels, gold = zip(*rows, strict=True)
    return Slate(slate.query, documents, labels, gold, slate.source)


def with_claims(collection: JudgedCorpus, number: int, seed: int) -> JudgedCorpus:
    """Take sentences out of documents that answer no question; each becomes a query for the rest of its document.

    This is the inverse cloze task (Lee et al. 2019, arXiv 1906.00300), with some words of each sentence left out.

    Args:
        collection: Documents and questions.
        number: Number of claims; fewer if not enough documents have a sentence of the right length.
        seed: Seed of the draws.
    """
    draw = random.Random(f"{seed}\nclaims")
    answers = {id_ for grades in collection.judgements.values() for id_ in grades}
    free = [id_ for id_ in collection.corpus if id_ not in answers]
    corpus, judgements = dict(collection.corpus), dict(collection.judgements)
    queries = {query: collection.queries[query] for query in judgements}
    wanted = len(queries) + number
    for id_ in draw.sample(free, len(free)):
        if len(queries) >= wanted:
            break
        sentences = SENTENCE_END.split(corpus[id_])
        places = [place for place in range(1, len(sentences)) if len(sentences[place].split()) in CLAIM_WORDS]
        if len(sentences) < 3 or not places:
            continue
        words = sentences.pop(draw.choice(places)).split()
        dropped = draw.choice(DROPPED)
        queries[f"claim {id_}"] = " ".join([word for word in words if draw.random() >= dropped] or words)
        judgements[f"claim {id_}"] = {id_: 1.0}
        corpus[id_] = " ".join(sentences)
    return JudgedCorpus(corpus, queries, judgements)
