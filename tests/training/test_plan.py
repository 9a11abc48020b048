"""The plan of a run: counts by hand."""

import copy
from pathlib import Path
from typing import Any

from e2rank_st import E2Rank
from e2rank_st.training.plan import plan
from tests.training.trainers import datasets, toy_trainer

ROW = {"query": "what is dog", "documents": ["about dog", "about cat"], "labels": [1.0, 0.0], "gold": [True, False]}


def planned(model: E2Rank, folder: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, str]:
    data = datasets.DatasetDict({"toy": datasets.Dataset.from_list(rows)})
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 1, **options}
    return dict(plan(toy_trainer(copy.deepcopy(model), folder, data, loss={"listwise_weight": 0}, **options)))


def test_counts_by_hand(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against steps and tokens of another run than the one that is planned."""
    made = planned(tiny, tmp_path, [ROW] * 10, gradient_accumulation_steps=2, num_train_epochs=3)
    assert (made["slates"], made["documents"], made["steps"]) == ("10 (toy 10)", "20", "6 of 8 slates (4 epochs)")
    query = len(tiny.tokenizer(tiny.prompts["query"] + ROW["query"])["input_ids"])
    texts = sum(len(tiny.tokenizer(text)["input_ids"]) for text in ROW["documents"])
    # Batches of 4, 4 and 2 slates: 10 / 3 on average.
    tokens = 2 * 10 / 3 * (query + texts)
    assert made["tokens a step"].startswith(f"{tokens:.0f} (")
    assert made["tokens in all"] == f"{6 * tokens:,.0f}"
    parameters = sum(parameter.numel() for parameter in tiny.parameters())
    assert made["parameters"] == f"{parameters:,} trained of {parameters:,}"
    assert planned(tiny, tmp_path, [ROW] * 10, max_steps=7)["steps"].startswith("7 of 4")


def test_slates_without_a_lesson_are_counted(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against data that trains nothing and does not show it."""
    empty = ROW | {"labels": [None, None], "gold": [False, False]}
    made = planned(tiny, tmp_path, [ROW, empty, empty, ROW | {"labels": [1.0, 1.0]}])
    assert made["nothing to learn"] == "50.0% without positive, 75.0% without preference"
