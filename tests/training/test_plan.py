"""The plan of a run: counts by hand."""

import copy
from pathlib import Path
from typing import Any

import pytest

from e2rank_st import E2Rank
from e2rank_st.training.losses import LossOptions
from e2rank_st.training.plan import Plan, make_plan
from e2rank_st.training.trainer import E2RankTrainer, E2RankTrainingArguments

datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate")

ROW = {"query": "what is dog", "documents": ["about dog", "about cat"], "labels": [1.0, 0.0], "gold": [True, False]}


def plan(model: E2Rank, folder: Path, rows: list[dict[str, Any]], **options: Any) -> Plan:
    data = datasets.DatasetDict({"toy": datasets.Dataset.from_list(rows)})
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "use_cpu": True}
    args = E2RankTrainingArguments(str(folder), **(defaults | options))
    loss = LossOptions(listwise_weight=0)
    return make_plan(E2RankTrainer(copy.deepcopy(model), args, train_dataset=data, loss_options=loss))


def test_counts_by_hand(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against steps and tokens of another run than the one that is planned."""
    made = plan(tiny, tmp_path, [ROW] * 10, gradient_accumulation_steps=2, num_train_epochs=3)
    assert (made.slates, made.documents, made.steps, made.slates_per_step) == ({"toy": 10}, 20, 6, 8)
    query = len(tiny.tokenizer(tiny.prompts["query"] + ROW["query"])["input_ids"])
    texts = sum(len(tiny.tokenizer(text)["input_ids"]) for text in ROW["documents"])
    # Batches of 4, 4 and 2 slates: 10 / 3 on average.
    assert made.tokens_per_step == round(2 * 10 / 3 * (query + texts))
    assert made.tokens == pytest.approx(6 * made.tokens_per_step, rel=0.01)
    parameters = sum(parameter.numel() for parameter in tiny.parameters())
    assert made.trained_parameters == made.parameters == parameters
    assert plan(tiny, tmp_path, [ROW] * 10, max_steps=7).steps == 7


def test_slates_without_a_lesson_are_counted(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against data that trains nothing and does not show it."""
    empty = ROW | {"labels": [None, None], "gold": [False, False]}
    made = plan(tiny, tmp_path, [ROW, empty, empty, ROW | {"labels": [1.0, 1.0]}])
    assert (made.without_positive, made.without_preference) == (0.5, 0.75)
