"""What is counted as needed work, against torch's own counter and closed forms."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from e2rank_st import E2Rank
from e2rank_st.benchmarks.meter import Meter, forward_flops, product_rate


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
    assert counter.get_total_flops() - pooler == forward_flops(backbone, length, length)


def test_a_decoder_needs_half_of_the_pairs(tiny: E2Rank):
    """Guards against a floor that is too high: a causal model looks at no later token."""
    backbone = backbone_of(tiny)
    both = [forward_flops(backbone, length, length) for length in (10, 20)]
    width = 4 * 2 * 4 * 8  # four a value: layers, heads, values of a head
    assert both[1] - 2 * both[0] == width * (20 * 21 // 2 - 2 * (10 * 11 // 2))
    assert sum(forward_flops(backbone, 1, total) for total in range(1, 11)) == both[0], "token by token is as much"


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
    assert meter.flops == forward_flops(backbone, 12, 12) + forward_flops(backbone, 1, 13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_is_a_positive_number(dtype, monkeypatch):
    """Guards against a floor that is a division by zero."""
    monkeypatch.setattr("e2rank_st.benchmarks.meter.SIDE", {"cpu": 64})
    assert 0 < product_rate(torch.device("cpu"), dtype) < float("inf")
