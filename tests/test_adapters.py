"""Adapters merged into their base."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2rank_st import E2Rank
from e2rank_st.adapters import CONFIG, WEIGHTS, merge_adapter, read_adapter_config

peft = pytest.importorskip("peft")


@pytest.fixture
def adapted(tiny: E2Rank, checkpoint: Path) -> E2Rank:
    """The tiny model with an adapter that changes something: peft starts with B = 0."""
    model = copy.deepcopy(tiny)
    model.transformers_model.name_or_path = str(checkpoint)
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="FEATURE_EXTRACTION"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture
def folder(adapted: E2Rank, tmp_path: Path) -> Path:
    adapted.replace_listwise(num_prompt_documents=3, max_prompt_tokens=300, query_weight=0.25)
    adapted.max_seq_length = 40
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def test_merged_adapter_is_the_adapter(adapted: E2Rank, folder: Path, tiny: E2Rank, facts: list[str]) -> None:
    """Guards against another scale than peft's, lost layers, and a configuration that stays the base's."""
    merged = E2Rank.from_adapter(folder, device="cpu")
    torch.testing.assert_close(merged.encode(facts), adapted.encode(facts), atol=1e-6, rtol=0)
    assert abs(merged.encode(facts) - tiny.encode(facts)).max() > 1e-2
    assert merged.rerank("flea", facts)[0] == pytest.approx(adapted.rerank("flea", facts)[0], abs=1e-6)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert merged.max_seq_length == 40
    listwise = merged.listwise
    assert (listwise.num_prompt_documents, listwise.max_prompt_tokens, listwise.query_weight) == (3, 300, 0.25)


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


def test_merged_model_is_saved_whole(folder: Path, tmp_path: Path, facts: list[str]) -> None:
    """Guards against a merged model that still needs its adapter."""
    merged = E2Rank.from_adapter(folder, device="cpu")
    merged.save_pretrained(str(tmp_path / "whole"))
    assert not (tmp_path / "whole" / CONFIG).exists()
    again = E2Rank(str(tmp_path / "whole"), device="cpu")
    assert (again.encode(facts) == merged.encode(facts)).all()


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


def test_an_adapter_of_another_base_is_refused(folder: Path, bundled: E2Rank) -> None:
    """Guards against an adapter that is half merged into a different base."""
    with pytest.raises(ValueError, match="no such layer"):
        merge_adapter(copy.deepcopy(bundled).transformers_model, folder)


def test_a_damaged_adapter_is_refused(folder: Path, tiny: E2Rank) -> None:
    """Guards against a layer that silently keeps the base's weights."""
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match="must hold pairs"):
        merge_adapter(copy.deepcopy(tiny).transformers_model, folder)
    with pytest.raises(ValueError, match="belongs to a different adapter than the one to train"):
        E2Rank.from_adapter(folder, merge=False, device="cpu")
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        E2Rank.from_adapter(folder.parent)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder here"):
        E2Rank.from_adapter("nowhere")
