"""Entries of the settings → data sets, evaluators and records."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from e2rank_st import E2Rank
from e2rank_st.data.slates import Manifest, Slate, write_slates
from e2rank_st.training.collator import prompt_orders
from e2rank_st.training.datasets import DataEntry, fingerprint, load_evaluator, load_training_data, with_prompt_orders
from tests.toy import toy_rows

pytest.importorskip("datasets")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def slates(tmp_path: Path) -> Path:
    return write(tmp_path / "slates.jsonl", toy_rows(8, source="a") + toy_rows(5, seed=1, source="b"))


def entry(path: Path, **options: Any) -> str:
    return json.dumps({"path": str(path), **options})


def test_a_source_for_each_name(tmp_path: Path, slates: Path) -> None:
    """Guards against sources that are mixed, and against rows that lose a column on their way."""
    pairs = write(tmp_path / "pairs.jsonl", [{"anchor": "q", "positive": "p", "negative": "n"}])
    data, records = load_training_data([str(slates), str(pairs)])
    assert {name: len(part) for name, part in data.items()} == {"a": 8, "b": 5, "pairs": 1}
    first = toy_rows(8, source="a")[0]
    assert data["a"][0] == {name: first[name] for name in ("query", "documents", "labels", "gold")}
    assert data["pairs"][0] == {"query": "q", "documents": ["p", "n"], "labels": [1.0, 0.0], "gold": [True, False]}
    assert [record["slates"] for record in records] == [13, 1]
    assert records[0]["sha256"] == hashlib.sha256(slates.read_bytes()).hexdigest()


def test_name_limit_and_reader_options(tmp_path: Path, slates: Path) -> None:
    """Guards against a limit that takes the first rows only, draws others each time, or an option that is lost."""
    data, records = load_training_data([entry(slates, name="all", limit=6)], seed=1)
    again, _ = load_training_data([entry(slates, name="all", limit=6)], seed=1)
    assert list(data["all"]["query"]) == list(again["all"]["query"])
    assert len(data["all"]) == records[0]["slates"] == 6
    assert list(data["all"]["query"]) != [row["query"] for row in toy_rows(6)]
    ranked = write(
        tmp_path / "ranked.jsonl", [{"query": "q", "document": ["x", "y"], "ranking": [2, 1], "source": "s"}]
    )
    data, _ = load_training_data([entry(ranked, gold_document=1)])
    assert data["s"][0]["gold"] == [False, True]


def test_depth_takes_the_first_documents(slates: Path) -> None:
    """Guards against negatives from far down where the nearest were asked for, and labels of other documents."""
    whole, shallow = (load_training_data([entry(slates, **options)])[0] for options in ({}, {"depth": 2}))
    columns = ("documents", "labels", "gold")
    assert [[row[name] for name in columns] for row in shallow["a"]] == [
        [row[name][:2] for name in columns] for row in whole["a"]
    ]
    assert load_training_data([entry(slates, depth=99)])[0]["b"][:] == whole["b"][:]
    with pytest.raises(ValueError, match="depth must be a whole number of at least 1, got 0"):
        load_training_data([entry(slates, depth=0)])


def test_bad_rows_are_skipped_where_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against a flag that no reader gets, rows that vanish in silence, and one entry that cannot differ."""
    rows = toy_rows(3)
    path = write(tmp_path / "slates.jsonl", [rows[0], rows[1] | {"query": ""}, rows[2]])
    with pytest.raises(ValueError, match=r"slates.jsonl.*2.*query"):
        load_training_data([str(path)])
    data, records = load_training_data([str(path)], skip_bad_rows=True)
    assert [len(part) for part in data.values()] == [2]
    assert records[0]["options"] == {"skip_bad_rows": True}
    assert "Skipped 1 of 3 rows" in caplog.text
    with pytest.raises(ValueError, match="query"):
        load_training_data([entry(path, skip_bad_rows=False)], skip_bad_rows=True)


def test_dev_results_may_not_lose_rows(tmp_path: Path) -> None:
    """Guards against judgements that slip to the next query when a row is left out."""
    hits = [{"content": "d", "qid": "1", "docid": "a", "rank": 1, "score": 1.0}]
    results = write(tmp_path / "results.jsonl", [{"query": "q", "hits": hits}])
    (tmp_path / "qrels").write_text("1 0 a 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="mend its bad rows"):
        load_evaluator([entry(results, qrels=str(tmp_path / "qrels"), skip_bad_rows=True)])
    with pytest.raises(ValueError, match="leave depth=3 out"):
        load_evaluator([entry(results, qrels=str(tmp_path / "qrels"), depth=3)])


def test_repeated_documents_are_one(tmp_path: Path) -> None:
    """Guards against a passage that is preferred to itself."""
    row = {"query": "q", "documents": ["x", "y", "x"], "labels": [0.0, 1.0, 2.0], "gold": [False, False, True]}
    data, _ = load_training_data([str(write(tmp_path / "twice.jsonl", [row]))])
    assert data["twice"][0] == {"query": "q", "documents": ["x", "y"], "labels": [2.0, 1.0], "gold": [True, False]}


def test_manifest_is_recorded(tmp_path: Path) -> None:
    """Guards against a model of which nobody knows what it was mined with."""
    pytest.importorskip("pyarrow")
    path = tmp_path / "mined.parquet"
    write_slates(path, [Slate("q", ("x",), (1.0,), source="s")], Manifest(source="here", base_model="base", seed=3))
    _, records = load_training_data([str(path)])
    assert records[0]["manifest"]["base_model"] == "base"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a", "limt": 3}', "Unknown field 'limt'.*did you mean 'limit'"),
        ('{"limit": 3}', "has no path"),
    ],
)
def test_wrong_entries_are_refused(text: str, message: str) -> None:
    """Guards against a misspelt option that changes nothing."""
    with pytest.raises(ValueError, match=message):
        DataEntry.parse(text)


def test_files_without_slates_are_refused(tmp_path: Path) -> None:
    """Guards against a run that trains on less than it names."""
    with pytest.raises(ValueError, match=r"empty\.jsonl"):
        load_training_data([str(write(tmp_path / "empty.jsonl", []))])


def test_evaluators(tmp_path: Path, slates: Path, tiny: E2Rank) -> None:
    """Guards against a best checkpoint by the last set alone, and against slates whose order shows the labels."""
    hits = [{"content": f"text {place}", "docid": f"d{place}", "qid": "q", "rank": place} for place in range(3)]
    run = write(tmp_path / "run.jsonl", [{"query": "a query", "hits": hits}] * 3)
    (tmp_path / "qrels.txt").write_text("q 0 d0 1\nq 0 elsewhere 3\n", encoding="utf-8")
    evaluator, records = load_evaluator(
        [entry(slates, limit=6), entry(run, qrels=str(tmp_path / "qrels.txt"), limit=2)]
    )
    assert evaluator is not None
    assert [part.name for part in evaluator.evaluators] == ["slates", "run"]
    assert [part.own_first_stage for part in evaluator.evaluators] == [True, False]
    assert [record["slates"] for record in records] == [6, 2]
    assert len(evaluator.evaluators[1].queries) == 2
    metrics = evaluator(tiny)
    assert metrics["run_first_stage_ndcg@10"] < 1, "what was not retrieved counts"
    mean = (metrics["slates_listwise_ndcg@10"] + metrics["run_listwise_ndcg@10"]) / 2
    assert metrics["sequential_score"] == pytest.approx(mean)


def test_no_evaluator_and_two_of_one_name(slates: Path) -> None:
    """Guards against metrics that overwrite each other."""
    assert load_evaluator([]) == (None, [])
    with pytest.raises(ValueError, match="Two sets to evaluate on are called 'slates'"):
        load_evaluator([str(slates), str(slates)])


def test_prompt_orders_are_kept_for_the_same_model_and_data(tmp_path: Path, slates: Path, tiny: E2Rank) -> None:
    """Guards against a resumed run with other prompts, and against the orders of another model or other data."""
    tiny = copy.deepcopy(tiny)
    cache = tmp_path / "run" / "order.json"
    given = with_prompt_orders(tiny, load_training_data([str(slates)])[0], cache)
    assert "prompt_order" not in given["a"].column_names
    assert not cache.exists()
    tiny.listwise.candidate_order = "similarity"
    data = with_prompt_orders(tiny, load_training_data([str(slates)])[0], cache)
    part = data["a"]
    assert list(part["prompt_order"]) == prompt_orders(tiny, list(part["query"]), list(part["documents"]))
    kept = json.loads(cache.read_text(encoding="utf-8"))
    kept["orders"]["a"][0] = kept["orders"]["a"][0][::-1]
    cache.write_text(json.dumps(kept), encoding="utf-8")
    again = with_prompt_orders(tiny, load_training_data([str(slates)])[0], cache)
    assert list(again["a"]["prompt_order"]) == kept["orders"]["a"], "the premise: it is read"
    with_prompt_orders(tiny, load_training_data([entry(slates, limit=4)])[0], cache)
    assert json.loads(cache.read_text(encoding="utf-8"))["key"] != kept["key"]


def test_fingerprint_tells_weights_apart(slates: Path, tiny: E2Rank) -> None:
    """Guards against orders of the model before another training."""
    data = load_training_data([str(slates)])[0]
    changed = copy.deepcopy(tiny)
    assert fingerprint(changed, data) == fingerprint(tiny, data)
    next(changed.parameters()).data.flatten()[0] += 1
    assert fingerprint(changed, data) != fingerprint(tiny, data)
