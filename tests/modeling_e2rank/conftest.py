"""Records of the shapes and texts that a model processes."""

from types import SimpleNamespace

import pytest

from e2rank_st import E2Rank


@pytest.fixture
def spy(tiny: E2Rank, monkeypatch):
    """The work of the model: shapes of forward passes, and every text given to the tokenizer."""
    shapes, texts = [], []
    handle = tiny[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0]["input_ids"].shape)))
    encode = type(tiny.tokenizer)._encode_plus

    def counting(tokenizer, text, *args, **kwargs):
        texts.extend([text] if isinstance(text, str) else text)
        return encode(tokenizer, text, *args, **kwargs)

    monkeypatch.setattr(type(tiny.tokenizer), "_encode_plus", counting)
    yield SimpleNamespace(shapes=shapes, texts=texts)
    handle.remove()
