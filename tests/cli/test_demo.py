"""Demo: two ranks of the same documents, and vectors that are kept between calls while they are valid."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest

import e2rank_st.cli.demo as demo_module
from e2rank_st import E2Rank
from e2rank_st.cli.demo import answer, cache_folder, keep_index, kept_index
from e2rank_st.data.docstrings import QUERIES, collect
from e2rank_st.search.index import Index

QUERY = "how long do fleas live"


@pytest.fixture(scope="module")
def index(bundled: E2Rank, facts: list[str]) -> Index:
    return Index.build(bundled, facts)


def test_answer_holds_both_rankings(bundled: E2Rank, index: Index, facts: list[str]):
    """Guards against ranks and scores that are mixed up between retrieval and reranking, or between rows."""
    found = answer(bundled, index, QUERY, top_k=4, num_candidates=6)
    scores, ids = (part[0].tolist() for part in index.retrieve(bundled.encode_query([QUERY]), 6))
    assert len(found.hits) == 4
    for hit in found.hits:
        assert ids[hit["retrieval_rank"] - 1] == hit["corpus_id"]
        assert scores[hit["retrieval_rank"] - 1] == hit["retrieval_score"]
    reranked = bundled.rerank(QUERY, [facts[row] for row in ids], top_k=4)
    assert [hit["corpus_id"] for hit in found.hits] == [ids[hit["corpus_id"]] for hit in reranked]
    np.testing.assert_allclose([hit["score"] for hit in found.hits], [hit["score"] for hit in reranked], atol=1e-5)
    assert found.retrieval_seconds > 0 < found.rerank_seconds


def test_answer_embeds_no_document(bundled: E2Rank, index: Index, monkeypatch: pytest.MonkeyPatch):
    """Guards against a demo that claims one pass a query and embeds its candidates again."""
    passes = []
    hook = bundled[0].register_forward_hook(lambda module, args, output: passes.append(len(args[0]["input_ids"])))
    answer(bundled, index, QUERY)
    hook.remove()
    assert passes == [1, 1]


def test_index_is_kept(bundled: E2Rank, index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a second run that embeds everything again, or says a word."""
    assert kept_index(bundled, index.texts, tmp_path / "cache") is None
    keep_index(index, tmp_path / "cache")
    kept = kept_index(bundled, index.texts, tmp_path / "cache")
    np.testing.assert_array_equal(kept.embeddings, index.embeddings)
    assert not caplog.records


def test_damaged_index_is_left(bundled: E2Rank, index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a demo that one interrupted or broken file stops for good, or that hides it."""
    keep_index(index, tmp_path)
    (tmp_path / "embeddings.safetensors").write_bytes(b"half")
    assert kept_index(bundled, index.texts, tmp_path) is None
    assert "damaged" in caplog.text
    keep_index(index, tmp_path)
    assert kept_index(bundled, index.texts, tmp_path) is not None


def test_index_of_a_changed_model_is_left(bundled: E2Rank, index: Index, tmp_path: Path, caplog):
    """Guards against old vectors for a folder whose model was trained further under the same name."""
    keep_index(index, tmp_path)
    changed = copy.deepcopy(bundled)
    changed[0].auto_model.embeddings.word_embeddings.weight.data.mul_(-1)
    assert kept_index(changed, index.texts, tmp_path) is None
    assert kept_index(bundled, [*index.texts[1:], "another"], tmp_path) is None
    assert caplog.text.count("different model or different texts") == 2


def test_unwritable_cache_is_no_error(index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a demo that fails where the home folder is read-only."""
    (tmp_path / "file").touch()
    keep_index(index, tmp_path / "file" / "cache")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_cache_folder(bundled: E2Rank, tiny: E2Rank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Guards against two models or two sets of texts that overwrite each other's vectors at every turn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder("bundled", bundled, ["a", "b"])
    assert folder.parent == tmp_path / "e2rank-st"
    assert folder == cache_folder("bundled", bundled, ["a", "b"])
    others = {cache_folder("other", bundled, ["a", "b"]), cache_folder("bundled", bundled, ["ab"])}
    others.add(cache_folder("bundled", tiny, ["a", "b"]))
    assert len(others | {folder}) == 4
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(demo_module.Path, "home", lambda: tmp_path / "home")
    assert cache_folder("bundled", bundled, ["a"]).parent == tmp_path / "home" / ".cache" / "e2rank-st"


def test_given_queries_have_answers():
    """Guards against given queries about functions that this Python does not have."""
    names = {docstring.name for docstring in collect()}
    assert len(QUERIES) == 3
    assert {"asyncio.tasks.gather", "random.Random.sample", "shlex.split"} <= names
