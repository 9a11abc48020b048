"""Batches without padding: an attention of variable length gives the vectors that padded batches give."""

import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AttentionInterface, AttentionMaskInterface, DataCollatorWithFlattening, RobertaConfig
from transformers import RobertaModel as Roberta
from transformers.masking_utils import flash_attention_mask

from e2rank_st import E2Rank
from e2rank_st.embedding_e2rank import first_position
from tests.modeling_e2rank.rankings import QUERY, assert_same

NAME = "by_borders"


def by_borders(module, query, key, value, attention_mask, *, cu_seq_lens_q, scaling, is_causal=None, **_):
    """What a flash attention of variable length does, sequence by sequence: the borders alone keep them apart."""
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


def with_borders(model: E2Rank) -> E2Rank:
    """A copy of the model that Sentence-Transformers takes for one with a flash attention."""
    AttentionInterface.register(NAME, by_borders)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    made = copy.deepcopy(model)
    made.transformers_model.set_attn_implementation(NAME)
    first = made[0]
    first.can_flatten_inputs = True
    first.data_collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    first._flatten_position_offset = first._infer_flatten_position_offset()
    if first.model_forward_params is not None:
        first.model_forward_params |= {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
    return made


@pytest.mark.parametrize("name", ["tiny", "bundled"])
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


def test_positions_behind_the_padding(tmp_path, tiny):
    """Guards against shifted positions: RoBERTa and its kind count from behind the padding's."""
    tiny.tokenizer.save_pretrained(tmp_path)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=len(tiny.tokenizer) + 8, max_position_embeddings=64, pad_token_id=1, **size)
    Roberta(config).save_pretrained(tmp_path)
    transformer = Transformer(str(tmp_path))
    model = SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")
    assert first_position(model) == transformer._infer_flatten_position_offset() == 2
    assert first_position(tiny) == 0
