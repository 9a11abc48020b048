"""Stored vectors: each text embedded once, and an order without meaning."""

import random

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")

from e2rank_st.benchmarks.corpus import Corpus  # noqa: E402


def corpus_of(documents: dict[str, str]) -> Corpus:
    return Corpus.of(list(documents), datasets.Dataset.from_dict({"text": list(documents.values())}))


def test_order_does_not_depend_on_the_given_one():
    """Guards against rows in the order of a benchmark's corpus, which may show its labels."""
    documents = {f"d{number}": f"text {number % 4}" for number in range(12)}
    shuffled = list(documents.items())
    random.Random(1).shuffle(shuffled)
    first, second = corpus_of(documents), corpus_of(dict(shuffled))
    assert first.ids == second.ids != list(documents)
    assert first.fingerprint == second.fingerprint
    assert first.read(np.arange(12)) == [documents[id_] for id_ in first.ids]
    assert corpus_of({**documents, "d0": "another"}).fingerprint != first.fingerprint


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_embeds_each_text_once(chunk_size: int):
    """Guards against repeated texts that are embedded again, or whose vectors differ, also across chunks."""
    documents = {f"d{number}": f"text {number % 3}" for number in range(10)}
    sent: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        sent.extend(texts)
        return np.asarray([[float(len(sent)), hash(text) % 97 + 1.0] for text in texts])

    corpus = corpus_of(documents)
    vectors = corpus.embed(encode, 2, chunk_size)
    assert sorted(sent) == ["text 0", "text 1", "text 2"]
    for text in set(documents.values()):
        rows = [row for row, id_ in enumerate(corpus.ids) if documents[id_] == text]
        assert len(rows) > 1
        assert (vectors[rows] == vectors[rows[0]]).all()
