"""LangChain: documents are reranked as model.rerank does it, with their vectors, also without blocking."""

import asyncio
import time

import pytest

from e2rank_st import E2Rank

documents_of = pytest.importorskip("langchain_core.documents")
Document = documents_of.Document

from e2rank_st.integrations.langchain import E2RankCompressor  # noqa: E402

QUERY = "how long do fleas live"


@pytest.fixture
def documents(tiny: E2Rank, facts: list[str]) -> list[Document]:
    """Facts with an id, and with the model's vector in the metadata."""
    rows = zip(facts, tiny.encode_document(facts).tolist(), strict=True)
    return [
        Document(id=f"d{place}", page_content=text, metadata={"vector": vector, "place": place})
        for place, (text, vector) in enumerate(rows)
    ]


def test_documents_are_reranked_with_their_vectors(tiny, facts, documents, passes):
    """Guards against a different order or score, lost ids and metadata, and documents that are embedded again."""
    expected = tiny.rerank(QUERY, facts, document_embeddings=tiny.encode_document(facts), top_k=4)
    before = [document.model_copy(deep=True) for document in documents]
    passes.clear()
    found = E2RankCompressor(tiny, top_n=4, embeddings="vector").compress_documents(documents, QUERY)
    assert passes == [1], "the prompt alone"
    assert [one.metadata["place"] for one in found] == [hit["corpus_id"] for hit in expected]
    assert [one.metadata["relevance_score"] for one in found] == [hit["score"] for hit in expected]
    for one in found:
        given = documents[one.metadata["place"]]
        assert (one.id, one.page_content) == (given.id, given.page_content)
        assert one.metadata.items() >= given.metadata.items()
    assert documents == before, "the caller's documents stay as they are"


def test_vectors_of_a_store(tiny, facts, documents, passes):
    """Guards against vectors that only metadata can bring: most stores keep them, and give them by id."""
    vectorstores = pytest.importorskip("langchain_core.vectorstores")

    class Embeddings(pytest.importorskip("langchain_core.embeddings").Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return tiny.encode_document(texts).tolist()

        def embed_query(self, text: str) -> list[float]:
            return tiny.encode_query(text).tolist()

    store = vectorstores.InMemoryVectorStore(Embeddings())
    store.add_documents(documents)
    retrieved = store.similarity_search(QUERY, 10)
    passes.clear()
    compressor = E2RankCompressor(tiny, embeddings=lambda given: [store.store[one.id]["vector"] for one in given])
    found = compressor.compress_documents(retrieved, QUERY)
    assert passes == [1]
    expected = tiny.rerank(QUERY, [one.page_content for one in retrieved])
    assert [one.id for one in found] == [retrieved[hit["corpus_id"]].id for hit in expected]


def test_without_vectors_documents_are_embedded(tiny, facts, documents, passes):
    """Guards against vectors that are taken although nobody said that they are this model's."""
    found = E2RankCompressor(tiny).compress_documents(documents, QUERY)
    assert passes == [10, 1]
    assert [one.metadata["place"] for one in found] == [hit["corpus_id"] for hit in tiny.rerank(QUERY, facts)]


def test_titles_and_options(tiny, facts):
    """Guards against a title and an option that do not reach the model."""
    titles = ["Fleas", None, *["Facts"] * 8]
    given = [Document(page_content=text, metadata={"title": title}) for title, text in zip(titles, facts, strict=True)]
    del given[1].metadata["title"]
    pages = [{"title": title, "text": text} for title, text in zip(titles, facts, strict=True)]
    compressor = E2RankCompressor(tiny, title_key="title", options={"query_weight": 0.5})
    found = compressor.compress_documents(given, QUERY)
    expected = tiny.rerank(QUERY, pages, query_weight=0.5)
    assert [one.metadata["relevance_score"] for one in found] == [hit["score"] for hit in expected]
    given[3].metadata["title"] = 7
    with pytest.raises(ValueError, match=r"documents\[3\]\['title'\] must be a string, got int"):
        compressor.compress_documents(given, QUERY)


def test_async_does_not_block_the_loop(tiny, documents, monkeypatch):
    """Guards against a server that answers nobody while a model works."""
    rerank = E2Rank.rerank

    def slow(*args, **options):
        time.sleep(0.3)
        return rerank(*args, **options)

    monkeypatch.setattr(E2Rank, "rerank", slow)
    compressor, ticks = E2RankCompressor(tiny), 0

    async def main():
        nonlocal ticks
        task = asyncio.create_task(compressor.acompress_documents(documents, QUERY))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.01)
        return await task

    assert asyncio.run(main()) == compressor.compress_documents(documents, QUERY)
    assert ticks > 5


def test_edges(tiny, documents):
    """Guards against an error where nothing was found, and against a field that is misspelt."""
    assert E2RankCompressor(tiny).compress_documents([], QUERY) == []
    assert E2RankCompressor(tiny, embeddings="vector").compress_documents([], QUERY) == []
    assert len(E2RankCompressor(tiny, top_n=99).compress_documents(documents[:2], QUERY)) == 2
    with pytest.raises(ValueError, match="top_k"):
        E2RankCompressor(tiny, top_k=3)
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
        E2RankCompressor("no such folder")
    documents[0].metadata["vector"] = [0.5] * 8
    with pytest.raises(ValueError, match=r"has 32 values, and document_embeddings\[0\] has 8"):
        E2RankCompressor(tiny, embeddings="vector").compress_documents(documents, QUERY)
