"""E2RankPooling: which token is pooled, in which precision, and what other runtimes read of it."""

import copy
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
    return list(torch.randn(sum(LENGTHS), DIMENSION, generator=torch.Generator().manual_seed(0)).split(LENGTHS))


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
def test_every_form_of_input(texts, mode):
    """Guards against pooling a padding token, a wrong boundary in one long row, and the need of an attention mask."""
    flat = {"token_embeddings": torch.cat(texts)[None], "cu_seq_lens_q": torch.tensor([0, *LENGTHS]).cumsum(0)}
    for features in (padded(texts, "left"), padded(texts, "right"), flat):
        pooled = E2RankPooling(DIMENSION, mode)(features)
        torch.testing.assert_close(pooled["sentence_embedding"], expected(texts, mode))
    pooled = E2RankPooling(DIMENSION, mode)({"token_embeddings": texts[2][None]})
    torch.testing.assert_close(pooled["sentence_embedding"], expected(texts[2:], mode))


def test_float32_whatever_the_model_computes_in(texts):
    """Guards against bfloat16 cosines, which tie: the vector is float32, of length 1 to float32 precision."""
    features = padded(texts, "right")
    features["token_embeddings"] = features["token_embeddings"].bfloat16()
    pooled = E2RankPooling(DIMENSION, "mean")(features)
    assert pooled["sentence_embedding"].dtype == torch.float32
    assert pooled["token_embeddings"].dtype == torch.bfloat16, "the token embeddings are handed on as they came"
    torch.testing.assert_close(pooled["sentence_embedding"].norm(dim=-1), torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", E2RankPooling.POOLING_MODES)
def test_stock_pooling_and_ours_read_each_other(tmp_path: Path, texts, mode):
    """Guards against a file that only we understand, and against runtimes that take the first true key."""
    E2RankPooling(DIMENSION, mode).save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    key = dict(E2RankPooling.STOCK_KEYS)[mode]
    assert [name for name, value in config.items() if value is True] == [key, "include_prompt"]
    stock = Pooling.load(str(tmp_path))
    assert (stock.pooling_mode, stock.embedding_dimension) == (mode, DIMENSION)
    pooled = normalize(stock(padded(texts, "left"))["sentence_embedding"], dim=-1)
    torch.testing.assert_close(pooled, expected(texts, mode))
    stock.save(str(tmp_path))
    assert "pooling_mode" in json.loads((tmp_path / "config.json").read_text()), "the premise: ST 6 writes another key"
    assert E2RankPooling.load(str(tmp_path)).pooling_mode == mode


def test_options_that_would_pool_differently():
    """Guards against a mode that this class lacks, and against a stock option that it would ignore."""
    for wrong in ("max", "weightedmean", "last", ""):
        with pytest.raises(ValueError, match=r"lasttoken.*cls.*mean"):
            E2RankPooling(DIMENSION, wrong)
    with pytest.raises(ValueError, match="include_prompt"):
        E2RankPooling(DIMENSION, "mean", include_prompt=False)


def test_encode_does_not_depend_on_the_padding_side(tiny: E2Rank, facts):
    """Guards against a tokenizer that pads on the other side: real forward passes agree."""
    model = copy.deepcopy(tiny)
    vectors = []
    for model.tokenizer.padding_side in ("left", "right"):
        vectors.append(model.encode_document(facts, convert_to_tensor=True))
    torch.testing.assert_close(*vectors, atol=1e-5, rtol=0)
