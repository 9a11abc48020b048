"""LlamaIndex: nodes are reranked as model.rerank does it, with their vectors."""

import asyncio
import pickle

import pytest

from e2rank_st import E2Rank

schema = pytest.importorskip("llama_index.core.schema")
NodeWithScore, QueryBundle, TextNode = schema.NodeWithScore, schema.QueryBundle, schema.TextNode

from e2rank_st.integrations.llama_index import E2RankPostprocessor  # noqa: E402

QUERY = "how long do fleas live"


@pytest.fixture
def nodes(tiny: E2Rank, facts: list[str]) -> list[NodeWithScore]:
    """Facts with the model's vectors, as a retriever found them, best first."""
    rows = zip(facts, tiny.encode_document(facts).tolist(), strict=True)
    return [
        NodeWithScore(node=TextNode(id_=str(place), text=text, embedding=vector), score=1 - place / 10)
        for place, (text, vector) in enumerate(rows)
    ]


def places(nodes: list[NodeWithScore]) -> list[int]:
    return [int(one.node.node_id) for one in nodes]


def test_nodes_are_reranked_with_their_vectors(tiny, facts, nodes, passes):
    """Guards against a different order or score, changed nodes, and nodes that are embedded again."""
    expected = tiny.rerank(QUERY, facts, document_embeddings=tiny.encode_document(facts), top_k=4)
    before = [one.model_copy(deep=True) for one in nodes]
    passes.clear()
    found = E2RankPostprocessor(tiny, top_n=4).postprocess_nodes(nodes, query_str=QUERY)
    assert passes == [1], "the prompt alone"
    assert places(found) == [hit["corpus_id"] for hit in expected]
    assert [one.score for one in found] == [hit["score"] for hit in expected]
    assert nodes == before, "the caller's nodes keep their scores"
    again = E2RankPostprocessor(tiny, top_n=4).postprocess_nodes(nodes, QueryBundle(QUERY))
    assert again == asyncio.run(E2RankPostprocessor(tiny, top_n=4).apostprocess_nodes(nodes, query_str=QUERY)) == found


def test_vectors_of_a_store_or_none(tiny, facts, nodes, passes):
    """Guards against vectors of a different model that cannot be switched off, and a store's that cannot be used."""
    simple = pytest.importorskip("llama_index.core.vector_stores.simple")
    store = simple.SimpleVectorStore()
    store.add([one.node for one in nodes])
    expected = E2RankPostprocessor(tiny).postprocess_nodes(nodes, query_str=QUERY)
    for one in nodes:
        one.node.embedding = None
    passes.clear()
    stored = E2RankPostprocessor(tiny, embeddings=lambda found: [store.get(node.node_id) for node in found])
    found = stored.postprocess_nodes(nodes, query_str=QUERY)
    assert passes == [1]
    assert (places(found), [one.score for one in found]) == (places(expected), [one.score for one in expected])
    passes.clear()
    assert places(E2RankPostprocessor(tiny).postprocess_nodes(nodes, query_str=QUERY)) == places(expected)
    assert passes == [10, 1], "no node has a vector"
    nodes[0].node.embedding = [0.5] * 8  # of a different model
    passes.clear()
    assert places(E2RankPostprocessor(tiny, embeddings=None).postprocess_nodes(nodes, query_str=QUERY)) == places(
        expected
    )
    assert passes == [10, 1]
    with pytest.raises(ValueError, match=r"has 32 values, and document_embeddings\[0\] has 8"):
        E2RankPostprocessor(tiny).postprocess_nodes(nodes, query_str=QUERY)


def test_the_text_is_the_one_that_llama_index_embeds(tiny, facts):
    """Guards against vectors of one text, and a prompt of a different one: metadata are part of it."""
    text = TextNode(text=facts[0], metadata={"title": "Fleas", "path": "/x"}, excluded_embed_metadata_keys=["path"])
    nodes = [NodeWithScore(node=text), *[NodeWithScore(node=TextNode(text=fact)) for fact in facts[1:]]]
    found = E2RankPostprocessor(tiny).postprocess_nodes(nodes, query_str=QUERY)
    expected = tiny.rerank(QUERY, [f"title: Fleas\n\n{facts[0]}", *facts[1:]])
    assert [one.score for one in found] == [hit["score"] for hit in expected]


def test_scores_of_the_retriever(tiny, facts, nodes):
    """Guards against a first stage that does not count where its weight says so."""
    options = {"first_stage_weight": 1.0}
    found = E2RankPostprocessor(tiny, options=options).postprocess_nodes(nodes[::-1], query_str=QUERY)
    assert places(found) == list(range(10))


def test_edges(tiny, nodes):
    """Guards against an error where nothing was found, a query that is missing, and a state that is lost on the way."""
    reranker = E2RankPostprocessor(tiny, top_n=3, options={"query_weight": 0.5})
    assert reranker.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ValueError, match="without a query"):
        reranker.postprocess_nodes(nodes)
    with pytest.raises(ValueError, match="top_k"):
        E2RankPostprocessor(tiny, top_k=3)
    assert reranker.to_dict() == {
        "top_n": 3,
        "options": {"query_weight": 0.5},
        "class_name": "E2RankPostprocessor",
    }
    copy = pickle.loads(pickle.dumps(reranker))
    expected = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert copy.postprocess_nodes(nodes, query_str=QUERY) == expected
