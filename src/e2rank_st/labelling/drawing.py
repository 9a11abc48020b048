"""A judged corpus or a long list → smaller ones for training: whole groups, dealt lists, and sentences as claims.

Draws depend on the seed and a name only, so every machine draws the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Set

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.slates import Slate

__all__ = ["deal", "draw_part", "with_claims", "without_documents"]

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
    rows = list(zip(slate.documents, slate.labels, slate.gold, strict=True))
    for _ in range(count):
        places = sorted(draw.sample(range(len(slate)), size))
        documents, labels, gold = zip(*(rows[place] for place in places), strict=True)
        yield Slate(slate.query, documents, labels, gold, slate.source)


def draw_part(collection: JudgedCorpus, documents: int, queries: int, seed: str) -> JudgedCorpus:
    """Draw whole groups of documents (the id before ``#``), then questions that they answer.

    Args:
        collection: Documents and questions.
        documents: Groups are drawn until they hold this number of documents.
        queries: Number of questions; each has its answers among the drawn documents.
        seed: Seed of the draws.
    """
    draw = random.Random(seed)
    groups: dict[str, list[str]] = {}
    for id_ in collection.corpus:
        groups.setdefault(id_.partition("#")[0], []).append(id_)
    chosen: list[str] = []
    for name in draw.sample(sorted(groups), len(groups)):
        if len(chosen) >= documents:
            break
        chosen += groups[name]
    corpus = {id_: collection.corpus[id_] for id_ in chosen}
    answered = [query for query, grades in collection.judgements.items() if grades.keys() <= corpus.keys()]
    drawn = draw.sample(answered, min(queries, len(answered)))
    return JudgedCorpus(corpus, collection.queries, {query: collection.judgements[query] for query in drawn})


def without_documents(collection: JudgedCorpus, documents: Set[str]) -> JudgedCorpus:
    """Leave out documents by their ids, and their judgements."""
    corpus = {id_: text for id_, text in collection.corpus.items() if id_ not in documents}
    judgements = {
        query: {id_: grade for id_, grade in grades.items() if id_ in corpus}
        for query, grades in collection.judgements.items()
    }
    return JudgedCorpus(corpus, collection.queries, {query: grades for query, grades in judgements.items() if grades})


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
