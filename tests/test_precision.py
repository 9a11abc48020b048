"""The type of the weights that a device is given."""

import pytest
import torch

from e2rank_st import E2Rank, precision
from e2rank_st.cli.models import load_encoder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh():
    precision.fastest_dtype.cache_clear()
    yield
    precision.fastest_dtype.cache_clear()


@pytest.mark.parametrize(
    ("instructions", "gain", "expected"),
    [
        ({}, 9.0, torch.float32),
        ({"avx2": True, "avx512_bf16": False}, 9.0, torch.float32),
        ({"avx512_bf16": True}, 4.0, torch.bfloat16),
        ({"amx_bf16": True}, 4.0, torch.bfloat16),
        ({"avx512_bf16": True}, 1.0, torch.float32),
    ],
)
def test_bfloat16_needs_instructions_and_a_gain(monkeypatch, instructions, gain, expected):
    """Guards against a slow type: a processor may lack the instructions, or claim them in vain."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    monkeypatch.setattr(precision, "gain", lambda device: gain)
    assert precision.fastest_dtype(CPU) == expected


def test_a_torch_that_cannot_be_asked(monkeypatch):
    """Guards against an error in an older torch."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision.fastest_dtype(CPU) == torch.float32


def test_the_gain_is_measured():
    """Guards against a choice that nothing was measured for."""
    assert precision.gain(CPU) > 0


def test_the_library_keeps_the_type_unless_asked(checkpoint, monkeypatch):
    """Guards against vectors that change behind the user's back."""
    monkeypatch.setattr(precision, "fastest_dtype", lambda device: torch.bfloat16)
    assert E2Rank(str(checkpoint), device="cpu").dtype == torch.float32
    assert E2Rank(str(checkpoint), device="cpu", dtype="auto").dtype == torch.bfloat16
    assert E2Rank.from_bundled(device="cpu", dtype="auto").dtype == torch.bfloat16
    assert load_encoder(str(checkpoint), "cpu", "auto").dtype == torch.bfloat16
    assert load_encoder(str(checkpoint), "cpu", "saved").dtype == torch.float32


def test_the_choice_is_in_the_log(caplog):
    """Guards against a type that nobody can find out."""
    with caplog.at_level("INFO", logger="e2rank_st.precision"):
        precision.fastest_dtype(CPU)
    assert "dtype='auto': float32 on cpu." in caplog.text or "dtype='auto': bfloat16 on cpu." in caplog.text


def test_a_type_that_cannot_count(checkpoint, tiny):
    """Guards against a type that is dropped without a word: given twice, or for modules that are made already."""
    with pytest.raises(ValueError, match="give one of them"):
        E2Rank(str(checkpoint), dtype="float32", model_kwargs={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="made already"):
        E2Rank(modules=list(tiny), dtype="bfloat16")
