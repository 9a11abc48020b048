"""Records of what a model embeds."""

from collections.abc import Iterator

import pytest

from e2rank_st import E2Rank


@pytest.fixture
def passes(tiny: E2Rank, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many texts went through each forward pass. A ranking with stored vectors is one prompt: [1]."""
    monkeypatch.setattr("e2rank_st.embedding_e2rank.START_TOKENS", {})  # so that all documents share a batch
    rows: list[int] = []
    handle = tiny[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0]["input_ids"])))
    yield rows
    handle.remove()
