"""Requests → answers: each equals a call of the model, in the form that its clients know."""

import base64
from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.serving.protocol import LONGEST, EmbeddingRequest, RerankBody, RerankRequest, SearchRequest, TEIRequest
from e2rank_st.serving.queue import ForwardQueue
from e2rank_st.serving.service import Service, relevance

QUERY = "how long do fleas live"


@pytest.fixture(scope="module")
def service(kind: E2Rank) -> Iterator[Service]:
    queue = ForwardQueue(kind)
    yield Service(queue)
    queue.close()


@pytest.fixture
def tiny_service(tiny: E2Rank) -> Iterator[Service]:
    queue = ForwardQueue(tiny)
    yield Service(queue)
    queue.close()


def pairs(results) -> list[tuple[int, float]]:
    return [(one.index, one.relevance_score) for one in results]


def expected(hits) -> list:
    """As the service maps scores; equal to 1e-5."""
    return [(hit["corpus_id"], pytest.approx((1 + hit["score"]) / 2, abs=1e-5)) for hit in hits]


def test_ranking(kind, service: Service, facts):
    """Guards against a different order or score than a call of the model gives, for each kind of document."""
    titled = [{"text": fact, "title": "Facts"} for fact in facts[:3]] + facts[3:]
    request = RerankRequest(query=QUERY, documents=titled, top_n=4, return_documents=True)
    found = service.rerank(request)
    assert pairs(found) == expected(kind.rerank(QUERY, titled, top_k=4))
    assert all(one.document.text == facts[one.index] for one in found)
    assert [one.document.title for one in found] == ["Facts" if one.index < 3 else None for one in found]
    for count in (None, 0, 100):
        assert len(service.rerank(RerankRequest(query=QUERY, documents=facts, top_n=count))) == len(facts)
    assert service.rerank(RerankRequest(query=QUERY, documents=[])) == []
    assert service.rerank(RerankRequest(query=QUERY, documents=[], document_embeddings=[])) == []


def test_stored_vectors(kind, service: Service, facts):
    """Guards against documents that are embedded although their vectors are there, and against vectors that differ."""
    vectors = kind.encode_document(facts)
    sequences = []
    handle = kind[0].register_forward_pre_hook(lambda _, args: sequences.append(len(args[0]["input_ids"])))
    request = RerankRequest(query=QUERY, documents=facts, document_embeddings=vectors.tolist())
    found = service.rerank(request)
    handle.remove()
    # The query counts with a weight above 0; the prompt of an adapter goes through a copy of the transformer.
    assert sum(sequences) == bool(kind.listwise.query_weight) + (kind.listwise.adapter is None)
    assert pairs(found) == expected(kind.rerank(QUERY, facts, document_embeddings=vectors))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0] * 32], "shape"),
        ([[1.0] * 31] * 2, "shape"),
        ([[1.0] * 32, [1.0]], r"document_embeddings\[1\] has 1 values"),
        ([[float("nan")] * 32] * 2, "NaN"),
        ([], "shape"),
    ],
)
def test_vectors_that_do_not_fit(tiny_service: Service, vectors, message: str):
    """Guards against a ranking by something else, and an error that speaks of NumPy."""
    with pytest.raises(ValueError, match=message):
        tiny_service.rerank(RerankRequest(query="q", documents=["a", "b"], document_embeddings=vectors))


def test_tokens_of_a_document(tiny, tiny_service: Service, facts):
    """Guards against ``max_tokens_per_doc`` that does nothing, or cuts at a different place than the tokenizer."""
    texts = tiny.listwise.texts.own
    cut = []
    for fact in facts:
        (encoding,) = texts.encodings([fact])
        cut.append(fact[: encoding.offsets[2][1]])
    assert all(one != other for one, other in zip(cut, facts, strict=True))
    request = RerankRequest(query=QUERY, documents=facts, max_tokens_per_doc=3)
    assert pairs(tiny_service.rerank(request)) == expected(tiny.rerank(QUERY, cut))
    request = RerankRequest(query=QUERY, documents=facts, max_tokens_per_doc=10**30)
    assert pairs(tiny_service.rerank(request)) == expected(tiny.rerank(QUERY, facts))


def test_the_form_of_tei(tiny, tiny_service: Service, facts):
    """Guards against a client of TEI that gets an object, cosines that it did not ask for, or texts of others."""
    hits = tiny.rerank(QUERY, facts)
    found = tiny_service.rerank_tei(TEIRequest(query=QUERY, texts=facts, return_text=True))
    assert [(one.index, one.score) for one in found] == expected(hits)
    assert [one.text for one in found] == [facts[one.index] for one in found]
    raw = tiny_service.rerank_tei(TEIRequest(query=QUERY, texts=facts, raw_scores=True))
    assert [one.score for one in raw] == pytest.approx([hit["score"] for hit in hits], abs=1e-5)
    assert raw[0].text is None


def test_which_form():
    """Guards against a body with ``texts`` that is read as Jina's, and the other way round."""
    body = TypeAdapter(RerankBody)
    assert type(body.validate_python({"query": "q", "texts": ["a"]})) is TEIRequest
    assert type(body.validate_python({"query": "q", "documents": ["a"], "model": "x", "unknown": 1})) is RerankRequest


def test_relevance_is_from_0_to_1():
    """Guards against a mapping that changes the order, or that rounding carries outside."""
    assert [relevance(cosine) for cosine in (-1.0000001, -1.0, 0.0, 1.0, 1.0000001)] == [0, 0, 0.5, 1, 1]


def test_embeddings(kind, service: Service, facts):
    """Guards against vectors that are not the model's, not of length 1, or in a different order."""
    rows = {
        None: np.asarray(kind.encode(facts, prompt="")),
        "query": np.asarray(kind.encode_query(facts)),
        "document": np.asarray(kind.encode_document(facts)),
    }
    for kind_of_text, vectors in rows.items():
        found = service.embed(EmbeddingRequest(input=facts, input_type=kind_of_text))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert [one.index for one in found] == list(range(len(facts)))
        np.testing.assert_allclose([one.embedding for one in found], unit, atol=1e-5)
    (alone,) = service.embed(EmbeddingRequest(input=facts[0]))
    np.testing.assert_allclose(alone.embedding, rows[None][0] / np.linalg.norm(rows[None][0]), atol=1e-5)
    assert service.embed(EmbeddingRequest(input=[])) == []


def test_forms_of_embeddings(tiny, tiny_service: Service, facts):
    """Guards against base64 that is not little-endian float32, and cut vectors that are not of length 1."""
    plain = tiny_service.embed(EmbeddingRequest(input=facts))
    packed = tiny_service.embed(EmbeddingRequest(input=facts, encoding_format="base64"))
    for one, other in zip(plain, packed, strict=True):
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(other.embedding), "<f4"), one.embedding, atol=1e-7)
    for one, whole in zip(tiny_service.embed(EmbeddingRequest(input=facts, dimensions=5)), plain, strict=True):
        part = np.array(whole.embedding[:5])
        np.testing.assert_allclose(one.embedding, part / np.linalg.norm(part), atol=1e-6)
    with pytest.raises(ValueError, match="more than the model's 32"):
        tiny_service.embed(EmbeddingRequest(input="a", dimensions=33))


def test_token_ids(tiny, tiny_service: Service, facts):
    """Guards against ids that are decoded, cut, or given special tokens again; and ids that no embedding has."""
    texts = tiny.listwise.texts.own
    rows = [list(texts.with_special_tokens(ids)) for ids in texts.ids(facts)]
    found = tiny_service.embed(EmbeddingRequest(input=rows))
    np.testing.assert_allclose([one.embedding for one in found], tiny.encode(facts, prompt=""), atol=1e-5)
    assert tiny_service.embed(EmbeddingRequest(input=rows[0]))[0].embedding == pytest.approx(
        found[0].embedding, abs=1e-5
    )
    for bad in ([[]], [[-1]], [[10**9]], [[10**30]], [[1] * 40_000]):
        with pytest.raises(ValueError, match="Token ids must be from 0 to"):
            tiny_service.embed(EmbeddingRequest(input=bad))


def test_the_model_with_its_prompt_adapter(kind, service: Service):
    """Guards against prompts of a remote client that the base embeds although the model has an adapter."""
    has_adapter = kind.listwise.adapter is not None
    assert len(service.names) == 1 + has_adapter
    ids = [list(range(20, 40))]
    plain, prompt = (
        service.embed(EmbeddingRequest(model=name, input=ids))[0].embedding
        for name in (service.name, service.name + ":prompt")
    )
    assert (plain != pytest.approx(prompt, abs=1e-4)) == has_adapter


@pytest.mark.parametrize(
    "where",
    [{"year": None}, {"year": {"a": 1}}, {"year": [[1]]}, {"year": [None]}, [], "year > 2000", {"\ud800": {}}],
)
def test_conditions_that_no_index_has(where):
    """Guards against SQL of strangers, and against values that only the index would find out to be none."""
    with pytest.raises(ValidationError):
        SearchRequest(query="q", where=where)


def test_search(tiny, facts):
    """Guards against a search that differs from that of the index itself, or that passes by the queue."""
    documents = [{"id": str(row), "text": fact, "year": 2000 + row} for row, fact in enumerate(facts)]
    index = SearchIndex.create(None, tiny, documents)
    batches = []
    queue = ForwardQueue(tiny, on_batch=lambda *numbers: batches.append(numbers))
    service = Service(queue, index)
    for options in ({}, {"top_k": 3}, {"rerank": False, "min_similarity": 0.1}):
        found = service.search(SearchRequest(query=QUERY, **options))
        for one, other in zip(found, index.search(QUERY, **options), strict=True):
            assert one["id"] == other["id"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert len(batches) == 5, "a query, and a prompt if it reranks"
    queue.close()


def test_names(tiny_service: Service, tiny):
    """Guards against a folder of the server's machine in every answer."""
    assert tiny.name.startswith("/") and tiny_service.name == "tiny-qwen3"


def test_texts_have_an_end():
    """Guards against a word of 16 MB, for which a tokenizer takes 5 GB."""
    with pytest.raises(ValidationError, match="at most"):
        RerankRequest(query="q" * (LONGEST + 1), documents=[])
    with pytest.raises(ValidationError, match="at most"):
        EmbeddingRequest(input=["q" * (LONGEST + 1)])
