"""Batches without padding: an attention of variable length gives the vectors that padded batches give."""

import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DataCollatorWithFlattening,
    RobertaConfig,
    RobertaModel,
)
from transformers.masking_utils import sdpa_mask

from e2rank_st import E2Rank
from e2rank_st.modeling_e2rank import ListwiseRerank
from tests.modeling_e2rank.rankings import QUERY, assert_same

NAME = "by_borders"


def by_borders(module, query, key, value, attention_mask, *, scaling, cu_seq_lens_q=None, is_causal=None, **_):
    """What a flash attention of variable length does, sequence by sequence: the borders alone keep them apart."""
    if cu_seq_lens_q is None:  # a padded batch
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, scaling=scaling)
    assert attention_mask is None
    causal = module.is_causal if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))  # (1, heads, T, size)
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(part[:, :, start:end] for part in (query, key, value)), is_causal=causal, scale=scaling
        )
        for start, end in zip(cu_seq_lens_q[:-1].tolist(), cu_seq_lens_q[1:].tolist(), strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def by_padding(*, attention_mask=None, **given):
    """The mask of a padded batch; without padding there is none."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **given)


def with_borders(model: SentenceTransformer) -> SentenceTransformer:
    """A copy of the model that Sentence-Transformers takes for one with a flash attention."""
    AttentionInterface.register(NAME, by_borders)
    AttentionMaskInterface.register(NAME, by_padding)
    made = copy.deepcopy(model)
    made.transformers_model.set_attn_implementation(NAME)
    first = made[0]
    first.can_flatten_inputs = True
    first.data_collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    first._flatten_position_offset = first._infer_flatten_position_offset()
    if first.model_forward_params is not None:
        first.model_forward_params |= {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
    return made


@pytest.mark.parametrize("name", ["tiny", "shipped"])
def test_scores_without_padding(name, facts, request):
    """Guards against tokens that see another text, in a decoder, and in an encoder with a prompt adapter."""
    padded = request.getfixturevalue(name)
    flat = with_borders(padded)
    shapes = []
    flat[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0]["input_ids"].shape)))
    texts = [*facts, "", "long " * 40]
    assert_same(flat.rerank(QUERY, texts), padded.rerank(QUERY, texts), 1e-5)
    assert {rows for rows, _ in shapes} == {1}, "the premise: all texts of a batch are one row"
    vectors = padded.encode_document(texts)
    assert torch.allclose(torch.tensor(flat.encode_document(texts)), torch.tensor(vectors), atol=1e-5)


def test_positions_behind_the_padding(tmp_path, bundled, facts):
    """Guards against shifted positions: RoBERTa and its kind count from behind the padding's."""
    bundled.tokenizer.save_pretrained(tmp_path)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    padding, number = bundled.tokenizer.pad_token_id, len(bundled.tokenizer)
    config = RobertaConfig(vocab_size=number, max_position_embeddings=padding + 128, pad_token_id=padding, **size)
    RobertaModel(config).save_pretrained(tmp_path)
    model = SentenceTransformer(modules=[Transformer(str(tmp_path)), Pooling(16, "mean")], device="cpu")
    listwise = ListwiseRerank("encoder", max_prompt_tokens=100, max_query_tokens=20)
    listwise.on_model_ready(model)
    padded = listwise.embedder().embed_texts("document", facts)
    assert torch.allclose(padded, torch.tensor(model.encode_document(facts)), atol=1e-5), "the premise"
    flat = with_borders(model)
    listwise.on_model_ready(flat)
    assert torch.allclose(listwise.embedder().embed_texts("document", facts), padded, atol=1e-5)
    (positions,) = listwise.embedder().features([(5, 6, 7), (8, 9)])["position_ids"].tolist()
    assert [place - padding for place in positions] == [1, 2, 3, 1, 2]


def test_a_prompt_that_does_not_count(tiny: E2Rank, facts):
    """Guards against the vectors of a retrieval prompt where the pooling leaves it out."""
    model = SentenceTransformer(modules=[tiny[0], Pooling(32, "mean", include_prompt=False)], device="cpu")
    model.prompts["document"] = "passage: "
    listwise = ListwiseRerank(max_prompt_tokens=500)
    vectors = []
    for chosen in (model, with_borders(model)):
        listwise.on_model_ready(chosen)
        vectors.append(listwise.embedder().embed_texts("document", facts))
    assert torch.allclose(*vectors, atol=1e-5)
    assert torch.allclose(vectors[0], torch.tensor(model.encode_document(facts)), atol=1e-5)


def test_a_text_without_tokens(tiny: E2Rank):
    """Guards against a crash, and against the vector of the text before it, where a tokenizer adds no token."""
    for model in (tiny, with_borders(tiny)):
        embedder = model.listwise.embedder()
        empty, alone = embedder.embed([(5, 6, 7), ()], "document")[1], embedder.embed([()], "document")[0]
        assert torch.allclose(empty, alone, atol=1e-6)
        assert not torch.allclose(empty, embedder.embed([(5, 6, 7)], "document")[0])
