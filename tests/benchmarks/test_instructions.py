"""Instructions only where a model has a place for them, and of the kind that belongs there."""

import pytest

from e2rank_st.benchmarks.instructions import listwise_instruction


@pytest.mark.parametrize(
    ("retrieval", "listwise"),
    [
        (
            "Given a web search query, retrieve relevant passages that answer the query",
            "Given a web search query and some relevant documents, rerank the documents that answer the query",
        ),
        (
            "Given a claim, retrieve documents that support or refute the claim",
            "Given a claim and some relevant documents, rerank the documents that support or refute the claim",
        ),
        ("Retrieve duplicate questions from AskUbuntu forum", None),
        ("", None),
    ],
)
def test_listwise_instruction(retrieval: str, listwise: str | None):
    """Guards against an instruction to retrieve in a prompt that is to rerank."""
    assert listwise_instruction(retrieval) == listwise
