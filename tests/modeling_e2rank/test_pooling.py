"""E2RankPooling: which token is pooled, in which precision, and what other runtimes read of it."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.nn.functional import normalize

from e2rank_st import E2Rank
from e2rank_st.modeling_e2rank import E2RankPooling

LENGTHS = (3, 1, 5)
DIMENSION = 4


@pytest.fixture
def texts() -> list[torch.Tensor]:
    """Token embeddings of three texts of different lengths, (L, D) each."""
    torch.manual_seed(0)
    return [torch.randn(length, DIMENSION) for length in LENGTHS]


def padded(texts: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """One batch of the texts, with garbage where the padding is."""
    width = max(map(len, texts))
    embeddings = torch.full((len(texts), width, DIMENSION), 1e3)
    mask = torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        span = slice(width - len(text), width) if side == "left" else slice(len(text))
        embeddings[row, span], mask[row, span] = text, 1
    return {"token_embeddings": embeddings, "attention_mask": mask}


def expected(texts: list[torch.Tensor], mode: str) -> torch.Tensor:
    choose = {"lasttoken": lambda t: t[-1], "cls": lambda t: t[0], "mean": lambda t: t.mean(0)}[mode]
    return normalize(torch.stack([choose(text) for text in texts]), dim=-1)


@pytest.mark.parametrize("mode", E2RankPooling.POOLING_MODES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_matter(texts, mode, side):
    """Guards against pooling a padding token: both sides give the tokens' own vectors, of length 1."""
    pooled = E2RankPooling(DIMENSION, mode)(padded(texts, side))["sentence_embedding"]
    torch.testing.assert_close(pooled, expected(texts, mode))


@pytest.mark.parametrize("mode", E2RankPooling.POOLING_MODES)
def test_flattened_input(texts, mode):
    """Guards against a wrong boundary where flash attention hands over one long row without padding."""
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    features = {"token_embeddings": torch.cat(texts).unsqueeze(0), "cu_seq_lens_q": ends}
    pooled = E2RankPooling(DIMENSION, mode)(features)["sentence_embedding"]
    torch.testing.assert_close(pooled, expected(texts, mode))


@pytest.mark.parametrize("mode", E2RankPooling.POOLING_MODES)
def test_no_padding(texts, mode):
    """Guards against needing an attention mask where every position is a token."""
    pooled = E2RankPooling(DIMENSION, mode)({"token_embeddings": texts[2].unsqueeze(0)})["sentence_embedding"]
    torch.testing.assert_close(pooled, expected(texts[2:], mode))


def test_float32_whatever_the_model_computes_in(texts):
    """Guards against bfloat16 cosines, which tie: the vector is float32, of length 1 to float32 precision."""
    features = padded(texts, "right")
    features["token_embeddings"] = features["token_embeddings"].bfloat16()
    pooled = E2RankPooling(DIMENSION, "mean")(features)
    assert pooled["sentence_embedding"].dtype == torch.float32
    assert pooled["token_embeddings"].dtype == torch.bfloat16, "the token embeddings are handed on as they came"
    torch.testing.assert_close(pooled["sentence_embedding"].norm(dim=-1), torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", E2RankPooling.POOLING_MODES)
def test_stock_pooling_reads_our_configuration(tmp_path: Path, texts, mode):
    """Guards against a pooling that only we understand: the stock class reads our file and pools the same."""
    E2RankPooling(DIMENSION, mode).save(str(tmp_path))
    stock = Pooling.load(str(tmp_path))
    assert (stock.pooling_mode, stock.embedding_dimension) == (mode, DIMENSION)
    pooled = normalize(stock(padded(texts, "left"))["sentence_embedding"], dim=-1)
    torch.testing.assert_close(pooled, expected(texts, mode))


def test_exactly_one_stock_key_is_true(tmp_path: Path):
    """Guards against runtimes that take the first true key: besides the mode only include_prompt is, and it is last."""
    E2RankPooling(DIMENSION, "lasttoken").save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert [key for key, value in config.items() if value is True] == ["pooling_mode_lasttoken", "include_prompt"]


@pytest.mark.parametrize("mode", E2RankPooling.POOLING_MODES)
def test_we_read_stock_configurations(tmp_path: Path, mode):
    """Guards against reading only our own file: the keys of Sentence-Transformers 6 are understood too."""
    Pooling(DIMENSION, mode).save(str(tmp_path))
    assert "pooling_mode" in json.loads((tmp_path / "config.json").read_text()), "the premise: ST 6 writes another key"
    assert E2RankPooling.load(str(tmp_path)).pooling_mode == mode


@pytest.mark.parametrize("wrong", ["max", "weightedmean", "last", ""])
def test_unknown_mode(wrong):
    """Guards against a mode that would silently pool differently; the error names the allowed modes."""
    with pytest.raises(ValueError, match=r"lasttoken.*cls.*mean"):
        E2RankPooling(DIMENSION, wrong)


def test_prompt_tokens_are_always_pooled():
    """Guards against a stock option that this class would ignore."""
    with pytest.raises(ValueError, match="include_prompt"):
        E2RankPooling(DIMENSION, "mean", include_prompt=False)


def test_encode_does_not_depend_on_the_padding_side(tiny: E2Rank, facts):
    """Guards against a tokenizer that pads on the other side: real forward passes agree."""
    tokenizer, before = tiny.tokenizer, tiny.tokenizer.padding_side
    vectors = {}
    try:
        for side in ("left", "right"):
            tokenizer.padding_side = side
            vectors[side] = tiny.encode_document(facts, convert_to_tensor=True)
    finally:
        tokenizer.padding_side = before
    torch.testing.assert_close(vectors["left"], vectors["right"], atol=1e-5, rtol=0)
