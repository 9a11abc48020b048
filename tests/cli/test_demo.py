"""Demo: two ranks of the same documents, and vectors that are kept between calls while they are valid."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.cli.demo import answer, stored_index
from e2rank_st.data.docstrings import QUERIES, collect
from e2rank_st.search.index import Index
from tests.toy import small_disk

QUERY = "how long do fleas live"


@pytest.fixture(scope="module")
def index(bundled: E2Rank, facts: list[str]) -> Index:
    return Index.build(bundled, facts)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "e2rank-st"


def test_answer_holds_both_rankings(bundled: E2Rank, index: Index, facts: list[str]):
    """Guards against ranks and scores that are mixed up, and against a demo that embeds its candidates again."""
    passes = []
    bundled = copy.deepcopy(bundled)
    bundled.replace_listwise(query_weight=0.0)
    hook = bundled[0].register_forward_hook(lambda module, args, output: passes.append(len(args[0]["input_ids"])))
    hits, *seconds = answer(bundled, index, QUERY, top_k=4, num_candidates=6)
    hook.remove()
    assert passes == [1, 1]
    scores, ids = (part[0].tolist() for part in index.retrieve(bundled.encode_query([QUERY]), 6))
    assert [ids[hit["retrieval_rank"] - 1] for hit in hits] == [hit["corpus_id"] for hit in hits]
    assert [scores[hit["retrieval_rank"] - 1] for hit in hits] == [hit["retrieval_score"] for hit in hits]
    reranked = bundled.rerank(QUERY, [facts[row] for row in ids], top_k=4)
    assert [hit["corpus_id"] for hit in hits] == [ids[hit["corpus_id"]] for hit in reranked]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in reranked], atol=1e-5)
    assert min(seconds) > 0


def test_index_is_kept(bundled: E2Rank, facts: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    """Guards against a second run that embeds again, and against one broken file that stops the demo or is hidden."""
    built = stored_index(bundled, facts, "bundled")
    (folder,) = cache.iterdir()
    (folder / "embeddings.safetensors").write_bytes(b"half")
    assert not caplog.records
    stored_index(bundled, facts, "bundled")
    assert "damaged" in caplog.text
    caplog.clear()
    monkeypatch.setattr(Index, "build", None)
    np.testing.assert_array_equal(stored_index(bundled, facts, "bundled").embeddings, built.embeddings)
    assert not caplog.records


def test_index_of_a_changed_model_is_left(bundled: E2Rank, facts: list[str], cache: Path, caplog):
    """Guards against old vectors for a folder whose model was trained further under the same name."""
    stored_index(bundled, facts, "bundled")
    changed = copy.deepcopy(bundled)
    changed[0].auto_model.embeddings.word_embeddings.weight.data.mul_(-1)
    assert stored_index(changed, facts, "bundled").agrees_with(changed)
    assert "different model" in caplog.text


def test_unwritable_cache_is_no_error(bundled: E2Rank, cache: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a demo that fails where the home folder is read-only."""
    cache.touch()
    assert stored_index(bundled, ["a"], "bundled").texts == ["a"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_full_disk_is_no_error(bundled: E2Rank, cache: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a demo that fails where the disk is full, and half an index in the cache."""
    with small_disk(1000):
        assert stored_index(bundled, ["a"], "bundled").texts == ["a"]
    assert "Is the disk full?" in caplog.text
    assert not list(cache.iterdir())


def test_cache_of_strangers_is_left(bundled: E2Rank, cache: Path, caplog: pytest.LogCaptureFixture):
    """Guards against answers from an index of other texts, and against the loss of somebody's files."""
    stored_index(bundled, ["a"], "bundled")
    (folder,) = cache.iterdir()
    Index.build(bundled, ["b"]).save(folder)
    assert stored_index(bundled, ["a"], "bundled").texts == ["a"]
    assert "other texts" in caplog.text
    assert Index.load(folder).texts == ["a"]
    (folder / "index.json").unlink()
    (folder / "thesis.tex").touch()
    assert stored_index(bundled, ["a"], "bundled").texts == ["a"]
    assert "holds other files" in caplog.text
    assert (folder / "thesis.tex").exists()


def test_user_without_home(bundled: E2Rank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Guards against a traceback in a container whose user does not have an entry."""

    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("e2rank_st.cli.demo.Path.home", refuse)
    assert stored_index(bundled, ["a"], "bundled").texts == ["a"]
    assert "Could not determine home directory" in caplog.text


def test_every_index_has_its_folder(bundled: E2Rank, tiny: E2Rank, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against two models or two sets of texts that overwrite each other's vectors at every turn."""
    arguments = [(bundled, ["a", "b"], "bundled"), (bundled, ["a", "b"], "b"), (bundled, ["ab"], "bundled")]
    for row in (*arguments, (tiny, ["a", "b"], "bundled")):
        stored_index(*row)
    assert len(list(cache.iterdir())) == 4
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("e2rank_st.cli.demo.Path.home", lambda: cache / "home")
    stored_index(*arguments[0])
    assert (cache / "home" / ".cache" / "e2rank-st").is_dir()


def test_given_queries_have_answers():
    """Guards against given queries about functions that this Python does not have."""
    names = {docstring.name for docstring in collect()}
    assert len(QUERIES) == 3
    assert {"asyncio.tasks.gather", "random.Random.sample", "shlex.split"} <= names
