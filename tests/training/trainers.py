"""Trainers on toy slates."""

from pathlib import Path
from typing import Any

import pytest
import torch

from e2rank_st import E2Rank
from e2rank_st.data.slates import Slate
from e2rank_st.search.texts import TextVectors
from e2rank_st.training.losses import LossOptions
from e2rank_st.training.trainer import E2RankTrainer, E2RankTrainingArguments
from tests.toy import toy_rows

datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate")


def toy_data(*numbers: int) -> Any:
    """A source of toy slates for each number."""
    parts = {f"source {index}": toy_rows(number, seed=index) for index, number in enumerate(numbers)}
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})


def toy_trainer(
    model: E2Rank, folder: Path, data: Any = None, loss: dict[str, Any] | None = None, **options: Any
) -> E2RankTrainer:
    """A trainer on the CPU: two sources, two epochs of five steps unless told otherwise."""
    evaluator = options.pop("evaluator", None)
    defaults = {
        "per_device_train_batch_size": 3,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 100,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = E2RankTrainingArguments(str(folder), **(defaults | options))
    data, loss_options = toy_data(9, 6) if data is None else data, LossOptions(**(loss or {}))
    texts = list(dict.fromkeys(text for part in data.values() for texts in part["documents"] for text in texts))
    frozen = TextVectors.build(model, texts) if loss_options.freeze_documents else None
    return E2RankTrainer(model, args, train_dataset=data, evaluator=evaluator, loss_options=loss_options, frozen=frozen)


def assert_equal_weights(first: E2Rank, second: E2Rank) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def logged(trainer: E2RankTrainer, name: str = "loss") -> list[float]:
    """A part of the loss at each step."""
    return [row[name] for row in trainer.state.log_history if name in row]


def as_slates(rows: list[dict[str, Any]]) -> list[Slate]:
    return [Slate(*(row[name] for name in ("query", "documents", "labels", "gold"))) for row in rows]
