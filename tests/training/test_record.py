"""A run's record and curves."""

import sys
from pathlib import Path
from typing import Any

import pytest

from e2rank_st.storage import read_json
from e2rank_st.training.record import TrainingRecord, check_plotting, read_earlier, split_log, stages

LOG = [
    {"eval_toy_listwise_ndcg@10": 0.4, "eval_runtime": 1.0, "step": 0},
    {"loss": 3.0, "contrastive": 2.0, "listwise": 1.0, "learning_rate": 0.1, "epoch": 0.5, "step": 1},
    {"loss": 2.0, "contrastive": 1.5, "listwise": 0.5, "learning_rate": 0.1, "epoch": 1.0, "step": 2},
    {"eval_toy_listwise_ndcg@10": 0.6, "step": 2},
    {"train_runtime": 3.0, "train_loss": 2.5, "step": 2},
]


def history(**changes: Any) -> TrainingRecord:
    losses, dev = split_log(LOG, ["toy_listwise_ndcg@10"])
    values: dict[str, Any] = {
        "settings": {"model": "base"},
        "loss": {"temperature": 0.03},
        "data": {"train": [], "dev": []},
        "log": losses,
        "dev": dev,
        "before": {"toy_listwise_ndcg@10": 0.4},
        "after": {"toy_listwise_ndcg@10": 0.6},
        "p_values": {"toy_listwise_ndcg@10": 0.5},
        "best_step": 2,
        "steps": 2,
        "resumed_from": None,
        "seconds": 3.0,
    }
    return TrainingRecord(**(values | changes))


def test_log_is_split() -> None:
    """Guards against curves of the wrong numbers: a trainer's log mixes all of them."""
    losses, dev = split_log(LOG, ["toy_listwise_ndcg@10"])
    assert losses == [
        {"step": row["step"], **{k: row[k] for k in ("loss", "contrastive", "listwise", "learning_rate")}}
        for row in LOG[1:3]
    ]
    assert dev == [{"step": 0, "toy_listwise_ndcg@10": 0.4}, {"step": 2, "toy_listwise_ndcg@10": 0.6}]


@pytest.mark.parametrize("changes", [{}, {"dev": [], "best_step": None, "before": {}, "after": {}}, {"log": []}])
def test_files(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Guards against a run of one step or without dev data that ends in an error, and a record with a user's name."""
    pytest.importorskip("matplotlib")
    history(**changes).write(tmp_path)
    record = read_json(tmp_path / "training.json")
    assert record["settings"] == {"model": "base"}
    assert set(record["environment"]) == {"versions", "hardware", "platform"}
    assert str(Path.home()) not in str(record)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "training.json"]


def test_stages_go_back_to_the_first(tmp_path: Path) -> None:
    """Guards against a model that tells of its last stage only, and one that invents an earlier one."""
    pytest.importorskip("matplotlib")
    assert read_earlier(tmp_path / "no such folder") is None
    for steps in (1, 2, 3):
        earlier = read_earlier(tmp_path / str(steps - 1))
        (tmp_path / str(steps)).mkdir()
        history(steps=steps, earlier=earlier).write(tmp_path / str(steps))
    last = read_earlier(tmp_path / "3")
    assert last is not None
    assert [run["steps"] for run in stages(last)] == [1, 2, 3]
    assert [run["steps"] for run in stages({"steps": 1})] == [1]  # as written before there was such a field


def test_missing_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an error at the end of a run, and one that does not say what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'e2rank-st\[train\]'"):
        check_plotting()
