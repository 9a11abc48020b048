"""Toy slates, models to be trained on them, and a disk that is soon full.

A query and a document belong together if they name the same thing. A tiny model learns a few slates by heart; to rank
others better it takes some hundreds of them.
"""

import copy
import random
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from e2rank_st import E2Rank
from e2rank_st.adapters import trained_adapter

THINGS = ["flea", "cat", "dog", "iron", "bread", "river", "moon", "sun", "gravity", "yeast", "water", "fire"]


def toy_rows(number: int, seed: int = 0, source: str = "toy") -> list[dict[str, Any]]:
    """Rows with 4 to 7 documents, the positive first, the last one unjudged; the numbers in texts mean nothing."""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        thing, count = draw.choice(THINGS), draw.randint(3, 6)
        others = [draw.choice([other for other in THINGS if other != thing]) for _ in range(count)]
        rows.append(
            {
                "query": f"what is {thing} {draw.randint(0, 999)}",
                "documents": [f"about {name} number {draw.randint(0, 999)}" for name in (thing, *others)],
                "labels": [2.0, *[0.0] * (count - 1), None],
                "gold": [True, *[False] * count],
                "source": source,
            }
        )
    return rows


def with_dropout(model: E2Rank) -> E2Rank:
    """A copy that draws at random while it trains."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    return model


def with_adapter(model: E2Rank) -> E2Rank:
    """A copy with a LoRA adapter, the same one on every call."""
    peft = pytest.importorskip("peft")
    model = with_dropout(model)
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=4, target_modules="all-linear", task_type="FEATURE_EXTRACTION"))
    return model


def with_trained_adapter(model: E2Rank) -> E2Rank:
    """A copy whose adapter has been trained already, as a second stage finds it."""
    model = with_adapter(model)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    return model


def with_prompt_adapter(model: E2Rank) -> E2Rank:
    """A copy with the same trained adapter for listwise prompts only."""
    model, trained = copy.deepcopy(model), with_trained_adapter(model)
    model.listwise.adapter = trained_adapter(trained.transformers_model, "toy/base", "main")
    return model


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow above a size, in bytes. :class:`Disk` is a whole one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Disk:
    """A file system in memory that is full at a size, in bytes, until it grows. The test is skipped without root."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir()
        try:
            self._mount(f"size={size}")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {getattr(error, 'stderr', error)}")

    def grow(self, size: int) -> None:
        """Make room."""
        self._mount(f"remount,size={size}")

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True, text=True)


def train_a_step(model: E2Rank, rate: float = 1e-4) -> None:
    """Train a model's weights in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model(model.preprocess(["fleas", "iron"]))["sentence_embedding"].std().backward()
    optimizer.step()
