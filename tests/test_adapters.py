"""Adapters merged into their base."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2rank_st import E2Rank
from e2rank_st.adapters import CONFIG, WEIGHTS, fill_adapter, merge_adapter, read_adapter_config
from tests.toy import with_trained_adapter


@pytest.fixture(scope="module")
def adapted(tiny: E2Rank, checkpoint: Path) -> E2Rank:
    """The tiny model with an adapter that changes something, and a configuration of its own."""
    model = with_trained_adapter(tiny).eval()
    model.transformers_model.name_or_path = str(checkpoint)
    model.replace_listwise(num_prompt_documents=3, max_prompt_tokens=300, query_weight=0.25)
    model.max_seq_length = 40
    return model


@pytest.fixture
def folder(adapted: E2Rank, tmp_path: Path) -> Path:
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def test_merged_adapter_is_the_adapter(adapted: E2Rank, folder: Path, tiny: E2Rank, facts: list[str]) -> None:
    """Guards against another scale than peft's, lost layers, the base's configuration, and a save that needs peft."""
    merged = E2Rank.from_adapter(folder, device="cpu")
    torch.testing.assert_close(merged.encode(facts), adapted.encode(facts), atol=1e-6, rtol=0)
    assert abs(merged.encode(facts) - tiny.encode(facts)).max() > 1e-2
    assert merged.rerank("flea", facts)[0] == pytest.approx(adapted.rerank("flea", facts)[0], abs=1e-6)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert merged.max_seq_length == 40
    listwise = merged.listwise
    assert (listwise.num_prompt_documents, listwise.max_prompt_tokens, listwise.query_weight) == (3, 300, 0.25)
    whole = folder.with_name("whole")
    merged.save_pretrained(str(whole))
    assert not (whole / CONFIG).exists()
    assert (E2Rank(str(whole), device="cpu").encode(facts) == merged.encode(facts)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_kept_apart_is_the_adapter(adapted: E2Rank, folder: Path, facts: list[str], dtype: str) -> None:
    """Guards against an adapter rounded to the type of the base, and one that cannot be trained further."""
    kept = E2Rank.from_adapter(folder, merge=False, device="cpu", model_kwargs={"dtype": dtype})
    theirs = dict(adapted.named_parameters())
    ours = {name: weight for name, weight in kept.named_parameters() if "lora_" in name}
    assert ours
    for name, weight in ours.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, theirs[name])
        assert weight.requires_grad
    if dtype == "float32":
        for model in (kept, E2Rank(str(folder), device="cpu")):  # loaded by us, and by ST's own way
            torch.testing.assert_close(model.encode(facts), adapted.encode(facts), atol=1e-6, rtol=0)
            assert model.rerank("flea", facts)[0] == pytest.approx(adapted.rerank("flea", facts)[0], abs=1e-6)
    assert (kept.max_seq_length, kept.listwise.max_prompt_tokens) == (40, 300)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"use_dora": True}, "use_dora=True"), ({"rank_pattern": {"a": 2}}, "rank_pattern"), ({"bias": "all"}, "bias")],
)
def test_other_adapters_are_refused(folder: Path, change: dict, message: str) -> None:
    """Guards against an adapter that is merged by the wrong formula."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_adapter_config(folder)


def test_a_damaged_or_foreign_adapter_is_refused(folder: Path, tiny: E2Rank, bundled: E2Rank) -> None:
    """Guards against a layer that silently keeps the base's weights, and an adapter merged into a different base."""
    with pytest.raises(ValueError, match="no such layer"):
        merge_adapter(copy.deepcopy(bundled).transformers_model, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match="must hold pairs"):
        merge_adapter(copy.deepcopy(tiny).transformers_model, folder)
    with pytest.raises(ValueError, match="belongs to a different adapter than the one to train"):
        E2Rank.from_adapter(folder, merge=False, device="cpu")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        merge_adapter(copy.deepcopy(tiny).transformers_model, folder)
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        fill_adapter(with_trained_adapter(tiny).transformers_model, folder / WEIGHTS)
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        E2Rank.from_adapter(folder.parent)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder here"):
        E2Rank.from_adapter("nowhere")
