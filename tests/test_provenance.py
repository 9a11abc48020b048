"""Texts and tokens of a model are counted without padding, for every caller."""

from e2rank_st import E2Rank
from e2rank_st.provenance import counted


def test_counts_tokens_without_padding(tiny: E2Rank, facts: list[str]):
    """Guards against costs that depend on the batch, reranking that is not seen, and counting on after the block."""
    texts = ["one", "a much longer text than the other one is"]
    lengths = [len(tiny.tokenizer(text)["input_ids"]) for text in texts]
    assert lengths[0] != lengths[1]
    with counted(tiny) as cost:
        tiny.encode(texts)
    assert (cost.texts, cost.tokens) == (2, sum(lengths))
    assert cost.seconds > 0
    vectors = tiny.encode_document(facts)
    with counted(tiny) as cost:
        tiny.rerank(["fleas", "rivers"], facts, document_embeddings=vectors, candidate_order="given")
    assert cost.texts == 2  # a prompt each, no document
    before = cost.tokens
    tiny.encode("not counted")
    assert cost.tokens == before > 0
