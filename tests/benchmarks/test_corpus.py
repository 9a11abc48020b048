"""Stored vectors: each text embedded once, an order without meaning, and exact search whatever the chunks."""

import random

import numpy as np
import pytest
import torch

datasets = pytest.importorskip("datasets")

from e2rank_st.benchmarks.corpus import Corpus, Layout, unit  # noqa: E402

CPU = torch.device("cpu")


def layout_of(documents: dict[str, str]) -> Layout:
    return Layout.of(list(documents), datasets.Dataset.from_dict({"text": list(documents.values())}))


def drawn(count: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dimension)))


def test_order_does_not_depend_on_the_given_one():
    """Guards against rows in the order of a benchmark's corpus, which may show its labels."""
    documents = {f"d{number}": f"text {number % 4}" for number in range(12)}
    shuffled = list(documents.items())
    random.Random(1).shuffle(shuffled)
    first, second = layout_of(documents), layout_of(dict(shuffled))
    assert first.ids == second.ids != list(documents)
    assert first.fingerprint == second.fingerprint
    assert first.read(np.arange(12)) == [documents[id_] for id_ in first.ids]
    assert layout_of({**documents, "d0": "another"}).fingerprint != first.fingerprint


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_embeds_each_text_once(chunk_size: int):
    """Guards against repeated texts that are embedded again, or whose vectors differ, also across chunks."""
    documents = {f"d{number}": f"text {number % 3}" for number in range(10)}
    sent: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        sent.extend(texts)
        return np.asarray([[float(len(sent)), hash(text) % 97 + 1.0] for text in texts])

    layout = layout_of(documents)
    corpus = Corpus.embed(layout, encode, 2, chunk_size)
    assert sorted(sent) == ["text 0", "text 1", "text 2"]
    for text in set(documents.values()):
        rows = [row for row, id_ in enumerate(layout.ids) if documents[id_] == text]
        assert len(rows) > 1
        assert (corpus.vectors[rows] == corpus.vectors[rows[0]]).all()


@pytest.mark.parametrize("only", [False, True])
def test_chunked_equals_whole(only: bool, monkeypatch: pytest.MonkeyPatch):
    """Guards against documents lost where chunks of documents or blocks of queries are merged; compared with a sort."""
    layout = layout_of({f"d{number}": f"text {number}" for number in range(50)})
    vectors, queries = drawn(50), drawn(7, seed=1)
    vectors[20:30] = vectors[20]  # ties, over several chunks
    listed = [np.sort(np.random.default_rng(query).permutation(50)[:30]) for query in range(7)]
    whole = Corpus(layout, vectors, 50).nearest(queries, 12, CPU, listed=listed, only=only)
    for query, rows in enumerate(whole):
        allowed = np.isin(np.arange(50), listed[query]) == only
        scores = np.where(allowed, (vectors.astype(np.float64) * queries[query].astype(np.float64)).sum(1), -np.inf)
        assert rows.tolist() == np.argsort(-scores, kind="stable")[:12].tolist()
    monkeypatch.setattr("e2rank_st.benchmarks.corpus.SCORES_AT_ONCE", 16)  # blocks of 2 to 16 queries
    for chunk_size in (1, 7, 49):
        corpus = Corpus(layout, vectors, chunk_size)
        found = corpus.nearest(queries, 12, CPU, listed=listed, only=only)
        assert [rows.tolist() for rows in found] == [rows.tolist() for rows in whole]
        assert corpus.cosines(queries[0], found[0]) == Corpus(layout, vectors, 50).cosines(queries[0], whole[0])


def test_more_asked_for_than_there_is():
    """Guards against a crash, or padding rows, where candidates are few or none."""
    corpus = Corpus(layout_of({"a": "one", "b": "two"}), drawn(2), 10)
    listed = [np.asarray([1]), np.empty(0, np.int64)]
    found = corpus.nearest(drawn(2, seed=1), 5, CPU, listed=listed, only=True)
    assert [rows.tolist() for rows in found] == [[1], []]
    assert corpus.layout.read(found[1]) == []
    assert sorted(corpus.nearest(drawn(1), 5, CPU, only=False)[0].tolist()) == [0, 1]


def test_unit_keeps_zero():
    """Guards against NaN where a text has no direction."""
    assert unit(np.asarray([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, 0.0]]
