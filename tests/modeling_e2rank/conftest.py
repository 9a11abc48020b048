"""Records of the shapes and texts that a model processes."""

from types import SimpleNamespace

import pytest

from e2rank_st import E2Rank
from e2rank_st.prompts_e2rank import TextTokenizer


@pytest.fixture
def spy(tiny: E2Rank, monkeypatch):
    """The work of the model: shapes of forward passes, and every text that reranking tokenises."""
    shapes, texts = [], []
    handle = tiny[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0]["input_ids"].shape)))
    encodings = TextTokenizer.encodings

    def recording(tokenizer, given, **options):
        texts.extend(given)
        return encodings(tokenizer, given, **options)

    monkeypatch.setattr(TextTokenizer, "encodings", recording)
    yield SimpleNamespace(shapes=shapes, texts=texts)
    handle.remove()
