"""Records of the shapes and texts that a model processes."""

import pytest

from e2rank_st import E2Rank


class Spy:
    """Records the work of a model: shapes of forward passes, and every text given to the tokenizer."""

    def __init__(self, model: E2Rank, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.texts: list[str] = []
        self.handle = model[0].register_forward_pre_hook(
            lambda _, args: self.shapes.append(tuple(args[0]["input_ids"].shape))
        )
        encode = type(model.tokenizer)._encode_plus

        def counting(tokenizer, text, *args, **kwargs):
            self.texts += [text] if isinstance(text, str) else list(text)
            return encode(tokenizer, text, *args, **kwargs)

        monkeypatch.setattr(type(model.tokenizer), "_encode_plus", counting)


@pytest.fixture
def spy(tiny: E2Rank, monkeypatch):
    spy = Spy(tiny, monkeypatch)
    yield spy
    spy.handle.remove()
