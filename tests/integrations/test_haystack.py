"""Haystack: documents are reranked as model.rerank does it, with their vectors, in pipelines that files hold."""

import copy
import inspect
from pathlib import Path

import pytest

from e2rank_st import E2Rank

haystack = pytest.importorskip("haystack")
Document, Pipeline = haystack.Document, haystack.Pipeline

from e2rank_st.integrations.haystack import E2RankRanker  # noqa: E402

QUERY = "how long do fleas live"


@pytest.fixture
def documents(tiny: E2Rank, facts: list[str]) -> list[Document]:
    """Facts with the model's vectors, as a retriever found them, best first."""
    rows = zip(facts, tiny.encode_document(facts).tolist(), strict=True)
    return [
        Document(id=str(place), content=text, embedding=vector, meta={"place": place}, score=1 - place / 10)
        for place, (text, vector) in enumerate(rows)
    ]


def places(documents: list[Document]) -> list[int]:
    return [int(document.id) for document in documents]


def test_documents_are_reranked_with_their_vectors(tiny, facts, documents, passes):
    """Guards against a different order or score, changed documents, and documents that are embedded again."""
    expected = tiny.rerank(QUERY, facts, document_embeddings=tiny.encode_document(facts), top_k=4)
    before = copy.deepcopy(documents)
    passes.clear()
    found = E2RankRanker(tiny, top_k=4).run(QUERY, documents)["documents"]
    assert passes == [1], "the prompt alone"
    assert places(found) == [hit["corpus_id"] for hit in expected]
    assert [one.score for one in found] == [hit["score"] for hit in expected]
    assert [one.meta for one in found] == [documents[place].meta for place in places(found)]
    assert documents == before, "the caller's documents keep their scores"
    assert E2RankRanker(tiny).run(QUERY, documents, top_k=4)["documents"] == found, "a run's own top_k"
    assert places(E2RankRanker(tiny, top_k=4).run(QUERY, documents, top_k=1)["documents"]) == places(found)[:1]


def test_vectors_of_a_different_model_are_switched_off(tiny, facts, documents, passes):
    """Guards against vectors that fit by chance: those of many models have 384 values."""
    found = E2RankRanker(tiny, use_embeddings=False).run(QUERY, documents)["documents"]
    assert passes == [10, 1]
    assert places(found) == [hit["corpus_id"] for hit in tiny.rerank(QUERY, facts)]


def test_a_pipeline_in_a_file(checkpoint: Path, tiny, facts, documents):
    """Guards against a component that loads too early, and against settings that a file loses."""
    settings = {
        "model": str(checkpoint),
        "top_k": 3,
        "title_meta_field": "title",
        "use_embeddings": False,
        "options": {"query_weight": 0.5},
        "load_options": {"device": "cpu"},
    }
    written = E2RankRanker(**settings).to_dict()
    assert written == {"type": "e2rank_st.integrations.haystack.E2RankRanker", "init_parameters": settings}
    assert E2RankRanker.from_dict(written).to_dict() == written
    assert E2RankRanker("org/not-there").to_dict(), "nothing is loaded before the first run"

    pipeline = Pipeline()
    pipeline.add_component("ranker", E2RankRanker(**settings))
    trusted = "allowed_modules" in inspect.signature(Pipeline.loads).parameters  # since Haystack 3
    more = {"allowed_modules": ["e2rank_st.integrations.haystack"]} if trusted else {}
    again = Pipeline.loads(pipeline.dumps(), **more)
    titled = [Document(id=one.id, content=one.content, meta={"title": "Facts"}) for one in documents]
    found = again.run({"ranker": {"query": QUERY, "documents": titled}})["ranker"]["documents"]
    pages = [{"title": "Facts", "text": fact} for fact in facts]
    expected = tiny.rerank(QUERY, pages, query_weight=0.5, top_k=3)
    assert places(found) == [hit["corpus_id"] for hit in expected]
    assert [one.score for one in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-6)


def test_warm_up_loads_once(checkpoint: Path, documents):
    """Guards against a model that is loaded for each query."""
    ranker = E2RankRanker(str(checkpoint), load_options={"device": "cpu"})
    ranker.warm_up()
    model = ranker._model
    ranker.warm_up()
    assert len(ranker.run(QUERY, documents)["documents"]) == 10
    assert ranker._model is model


def test_a_document_that_two_retrievers_found(tiny, documents):
    """Guards against a document that takes two places, and against a vector that is lost with its copy."""
    ranker = E2RankRanker(tiny)
    expected = places(ranker.run(QUERY, documents)["documents"])
    bare = [Document(id=one.id, content=one.content) for one in documents[:3]]
    found = ranker.run(QUERY, bare + documents)["documents"]
    assert places(found) == expected
    assert all(one.embedding for one in found)


def test_scores_of_the_retriever(tiny, documents):
    """Guards against a first stage that does not count where its weight says so."""
    ranker = E2RankRanker(tiny, options={"first_stage_weight": 1.0})
    assert places(ranker.run(QUERY, documents[::-1])["documents"]) == list(range(10))


def test_edges(tiny, documents):
    """Guards against an error where nothing was found, and against a file that silently names a different model."""
    assert E2RankRanker(tiny).run(QUERY, []) == {"documents": []}
    with pytest.raises(ValueError, match="give the path of its folder"):
        E2RankRanker(tiny).to_dict()
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
        E2RankRanker("no such folder").warm_up()
    with pytest.raises(ValueError, match=r"documents\[1\] must be a string"):
        E2RankRanker(tiny).run(QUERY, [documents[0], Document(id="x", embedding=documents[1].embedding)])
