"""Checkpoints of a run and the mean of their weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from e2rank_st import E2Rank
from e2rank_st.averaging import mean_weights, read_weights


def test_mean_by_hand() -> None:
    """Guards against a mean that is one of bfloat16 sums, or that takes the mean of what counts something."""
    exact = torch.bfloat16
    checkpoints = [
        {"weight": torch.tensor([[256.0, 1.0]], dtype=exact), "count": torch.tensor([0, 1])},
        {"weight": torch.tensor([[1.0, 1.0]], dtype=exact), "count": torch.tensor([0, 1])},
        {"weight": torch.tensor([[1.0, 4.0]], dtype=exact), "count": torch.tensor([0, 1])},
    ]
    mean = mean_weights(iter(checkpoints))
    assert torch.equal(mean["weight"], torch.tensor([[86.0, 2.0]]))  # 256 + 1 is 256 in bfloat16
    assert torch.equal(mean["count"], torch.tensor([0, 1]))
    assert checkpoints[0]["weight"][0, 0] == 256


def test_one_checkpoint_is_its_own_mean(tiny: E2Rank) -> None:
    weights = tiny.state_dict()
    mean = mean_weights([weights])
    assert mean.keys() == weights.keys()
    assert all(torch.equal(mean[name], values.float()) for name, values in weights.items())


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [([], "no checkpoints"), ([{"a": torch.ones(1)}, {"b": torch.ones(1)}], "different models: a is in some only")],
)
def test_no_mean(checkpoints: list[dict[str, torch.Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_weights(checkpoints)


def test_an_adapter_goes_before_the_model(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against a mean of whole models where an adapter is trained, whose names the trainer does not know."""
    tiny.save_pretrained(str(tmp_path))
    whole = read_weights(tmp_path)
    assert whole.keys() == tiny.state_dict().keys()
    save_file({"base_model.model.layer.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    assert list(read_weights(tmp_path)) == ["base_model.model.layer.lora_A.weight"]
