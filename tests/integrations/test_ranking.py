"""What all integrations share: vectors of some documents, options, and libraries that are missing."""

import importlib
import logging
import re
import sys

import pytest

from e2rank_st import E2Rank
from e2rank_st.integrations.ranking import loaded, ranked
from tests import ROOT

QUERY = "how long do fleas live"
LIBRARIES = {
    "haystack": ("haystack", "haystack"),
    "lancedb": ("lancedb.rerankers", "search"),
    "langchain": ("langchain_core.documents", "langchain"),
    "llama_index": ("llama_index.core.schema", "llama-index"),
    "ray": ("ray", "ray"),
}


def test_documents_without_vectors_are_embedded_and_no_others(
    tiny: E2Rank, facts: list[str], passes: list[int], caplog: pytest.LogCaptureFixture
):
    """Guards against a ranking that depends on which documents have vectors, and against work that is not needed."""
    expected, stored = tiny.rerank(QUERY, facts), tiny.encode_document(facts)
    places = [hit["corpus_id"] for hit in expected]
    for missing, rows in (([], [1]), ([2, 7], [2, 1]), (range(10), [10, 1])):
        vectors = [None if place in missing else stored[place].tolist() for place in range(10)]
        passes.clear(), caplog.clear()
        with caplog.at_level(logging.INFO, "e2rank_st"):
            found = ranked(tiny, QUERY, facts, vectors=vectors, options={})
        assert passes == rows
        assert (f"{len(missing)} of 10" in caplog.text) == bool(missing)
        assert [hit["corpus_id"] for hit in found] == places
        assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
    assert ranked(tiny, QUERY, facts, vectors=[[]] * 10, options={}) == expected, "an empty vector is a missing one"


def test_stored_vectors_decide(tiny: E2Rank, facts: list[str]):
    """Guards against stored vectors that are taken, and then replaced."""
    stored = tiny.encode_document(facts)[::-1].copy()
    expected = tiny.rerank(QUERY, facts, document_embeddings=stored)
    assert ranked(tiny, QUERY, facts, vectors=stored, options={}) == expected
    assert expected != tiny.rerank(QUERY, facts), "the premise"


def test_a_title_belongs_to_the_text_that_is_embedded(tiny: E2Rank, facts: list[str]):
    """Guards against the vector of a text without its title, where only some documents have vectors."""
    titles = ["Fleas", None, "", *["Facts"] * 7]
    pages = [{"title": title, "text": text} for title, text in zip(titles, facts, strict=True)]
    expected = tiny.rerank(QUERY, pages)
    stored = tiny.encode_document([tiny.listwise.document_text(page) for page in pages])
    vectors = [None, *stored[1:-1], None]
    found = ranked(tiny, QUERY, facts, titles=titles, vectors=vectors, options={})
    assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in expected]
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)


def test_passages_of_documents_without_vectors(shipped: E2Rank, facts: list[str]):
    """Guards against a long document that is ranked by its start, because a different one has a vector."""
    texts = ["Iron melts. " * 300 + facts[0], *facts[1:]]
    options = {"long_documents": "passages"}
    vectors = [None, *shipped.encode_document(texts[1:])]
    found = ranked(shipped, QUERY, texts, vectors=vectors, options=options)
    assert found == shipped.rerank(QUERY, texts, **options)
    assert found != shipped.rerank(QUERY, texts), "the premise"


def test_scores_of_the_first_stage_count_where_all_are_known(tiny: E2Rank, facts: list[str]):
    """Guards against a weight without effect, and against a missing score that counts as zero."""
    scores, options = [float(place) for place in range(10)], {"first_stage_weight": 0.7}
    expected = tiny.rerank(QUERY, facts, first_stage_scores=scores, **options)
    assert ranked(tiny, QUERY, facts, scores=scores, options=options) == expected
    with pytest.raises(ValueError, match="needs first_stage_scores"):
        ranked(tiny, QUERY, facts, scores=[None, *scores[1:]], options=options)
    assert ranked(tiny, QUERY, facts, scores=[None, *scores[1:]], options={}) == tiny.rerank(QUERY, facts)


def test_refusals(tiny: E2Rank, facts: list[str]):
    """Guards against vectors of a different model, and options, that rank silently wrong."""
    with pytest.raises(ValueError, match=re.escape("must have the shape (10, 32), a vector for each document, got")):
        ranked(tiny, QUERY, facts, vectors=[[0.5] * 8] * 10, options={})
    with pytest.raises(ValueError, match=r"\[1\] has 8 values, and document_embeddings\[0\] has 32"):
        ranked(tiny, QUERY, facts, vectors=[None, *[[0.5] * 8] * 9], options={})
    with pytest.raises(ValueError, match="Got 3 vectors for 10 documents"):
        ranked(tiny, QUERY, facts, vectors=[None] * 3, options={})
    with pytest.raises(TypeError, match="querry_weight"):
        ranked(tiny, QUERY, facts, options={"querry_weight": 1})


def test_a_model_or_its_name(tiny: E2Rank):
    """Guards against a second copy of a model that is there, and against a name that fails only at the first query."""
    assert loaded(tiny) is tiny
    assert loaded("bundled").name == "bundled"
    for wrong in ("no such folder", None, 3):
        with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
            loaded(wrong)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_names_the_command_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch):
    """Guards against an error of a stranger's module, and against an extra that does not exist."""
    library, extra = LIBRARIES[name]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"e2rank_st.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'e2rank-st[{extra}]'")):
        importlib.import_module(f"e2rank_st.integrations.{name}")
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
