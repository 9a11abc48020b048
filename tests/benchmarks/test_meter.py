"""What is counted as needed work, against torch's own counter and closed forms."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from e2rank_st import E2Rank
from e2rank_st.benchmarks.meter import Meter, Products, memory_in_use, product_rate
from e2rank_st.benchmarks.peers import write_random_decoder


def backbone_of(model: E2Rank):
    assert model.transformers_model is not None
    return model.transformers_model


def test_an_encoder_needs_what_torch_counts(bundled: E2Rank):
    """Guards against a floor of another model: for one text without padding, torch counts the same operations."""
    backbone, length = copy.deepcopy(backbone_of(bundled)), 37
    backbone.set_attn_implementation("eager")  # of the others, the counter leaves out the attention on a CPU
    ids = torch.randint(1000, 2000, (1, length))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone(input_ids=ids, attention_mask=torch.ones_like(ids))
    pooler = 2 * backbone.config.hidden_size**2  # of one token: no ranking uses it
    assert counter.get_total_flops() - pooler == Products.of(backbone).flops(length, length)


def test_a_decoder_needs_half_of_the_pairs(tiny: E2Rank):
    """Guards against a floor that is too high: a causal model looks at no later token."""
    backbone = backbone_of(tiny)
    both = [Products.of(backbone).flops(length, length) for length in (10, 20)]
    width = 4 * 2 * 4 * 8  # four a value: layers, heads, values of a head
    assert both[1] - 2 * both[0] == width * (20 * 21 // 2 - 2 * (10 * 11 // 2))
    assert sum(Products.of(backbone).flops(1, total) for total in range(1, 11)) == both[0], "token by token is as much"


def test_padding_is_not_needed(tiny: E2Rank, facts: list[str]):
    """Guards against work that only padding makes: a batch needs what its texts need alone."""
    with Meter([tiny[0], backbone_of(tiny)]) as meter:
        tiny.encode_document(facts)
        together = meter.flops, meter.tokens
        assert meter.seconds > 0
        meter.clear()
        for fact in facts:
            tiny.encode_document(fact)
        assert (meter.flops, meter.tokens) == together
    tiny.encode_document(facts)
    assert (meter.flops, meter.tokens) == together, "after the block, nothing counts"


def test_a_token_that_is_written_needs_one_step(tiny: E2Rank):
    """Guards against counting the prompt again for each token that a generative model writes."""
    backbone, ids = backbone_of(tiny), torch.randint(0, 100, (1, 12))
    with Meter([backbone, backbone]) as meter, torch.inference_mode():
        cache = backbone(input_ids=ids, use_cache=True).past_key_values
        backbone(input_ids=ids[:, :1], past_key_values=cache, attention_mask=torch.ones(1, 13, dtype=torch.long))
    assert meter.tokens == 13
    assert meter.flops == Products.of(backbone).flops(12, 12) + Products.of(backbone).flops(1, 13)


def test_an_output_layer_is_for_the_last_token(with_yes_and_no, tmp_path):
    """Guards against an output layer for each token of a prompt, or for none: only the next token is wanted."""
    writer = AutoModelForCausalLM.from_pretrained(write_random_decoder("qwen3-small", with_yes_and_no, tmp_path))
    ids = torch.randint(0, 100, (1, 12))
    with Meter([writer]) as meter, torch.inference_mode(), FlopCounterMode(display=False) as counter:
        writer(input_ids=ids, logits_to_keep=1)
    linear = counter.get_total_flops()
    attention = 4 * 8 * 4 * 64 * (12 * 13 // 2)  # the counter leaves it out on a CPU
    assert meter.flops - attention == linear


@pytest.mark.skipif(memory_in_use(torch.device("cpu")) is None, reason="only Linux tells the peak of a call")
def test_memory_that_was_kept_counts():
    """Guards against a call that needs nothing, because the one before it left its memory to it."""
    for _ in range(3):
        before = memory_in_use(torch.device("cpu"))
        blocks = [bytearray(100_000) for _ in range(500)]
        del blocks
        assert memory_in_use(torch.device("cpu"), peak=True) - before > 40_000_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_is_a_positive_number(dtype, monkeypatch):
    """Guards against a floor that is a division by zero."""
    monkeypatch.setattr("e2rank_st.benchmarks.meter.SIDE", {"cpu": 64})
    assert 0 < product_rate(torch.device("cpu"), dtype) < float("inf")
