"""Entries of the settings → data sets, evaluators and records."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from e2rank_st import E2Rank
from e2rank_st.data.slates import Manifest, Slate, write_slates
from e2rank_st.storage import read_json, write_json
from e2rank_st.training.collator import prompt_orders
from e2rank_st.training.datasets import load_evaluator, load_training_data, with_prompt_orders
from e2rank_st.training.losses import LossOptions
from tests.toy import toy_rows
from tests.training.conftest import write

pytest.importorskip("datasets")
pytest.importorskip("pyarrow")


@pytest.fixture
def slates(tmp_path: Path) -> str:
    return write(tmp_path / "slates.jsonl", toy_rows(8, source="a") + toy_rows(5, seed=1, source="b"))


def entry(path: str, **options: Any) -> str:
    return json.dumps({"path": path, **options})


def test_a_source_for_each_name(tmp_path: Path, slates: str) -> None:
    """Guards against mixed sources, rows that lose a column, a passage preferred to itself, and a lost manifest."""
    pairs = write(tmp_path / "pairs.jsonl", [{"anchor": "q", "positive": "p", "negative": "n"}])
    row = {"query": "q", "documents": ["x", "y", "x"], "labels": [0.0, 1.0, 2.0], "gold": [False, False, True]}
    twice, mined = write(tmp_path / "twice.jsonl", [row]), tmp_path / "mined.parquet"
    write_slates(mined, [Slate("q", ("x",), (1.0,), source="s")], Manifest(source="here", base_model="base", seed=3))
    data, records = load_training_data([slates, pairs, twice, str(mined)])
    assert {name: len(part) for name, part in data.items()} == {"a": 8, "b": 5, "pairs": 1, "twice": 1, "s": 1}
    first = toy_rows(8, source="a")[0]
    assert data["a"][0] == {name: first[name] for name in ("query", "documents", "labels", "gold")}
    assert data["pairs"][0] == {"query": "q", "documents": ["p", "n"], "labels": [1.0, 0.0], "gold": [True, False]}
    assert data["twice"][0] == {"query": "q", "documents": ["x", "y"], "labels": [2.0, 1.0], "gold": [True, False]}
    assert [record["slates"] for record in records] == [13, 1, 1, 1]
    assert records[0]["sha256"] == hashlib.sha256(Path(slates).read_bytes()).hexdigest()
    assert records[3]["manifest"]["base_model"] == "base"


def test_name_limit_and_reader_options(tmp_path: Path, slates: str) -> None:
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


def test_depth_takes_the_first_documents(slates: str) -> None:
    """Guards against negatives from far down where the nearest were asked for, and labels of other documents."""
    whole, shallow = (load_training_data([entry(slates, **options)])[0] for options in ({}, {"depth": 2}))
    columns = ("documents", "labels", "gold")
    assert [[row[name] for name in columns] for row in shallow["a"]] == [
        [row[name][:2] for name in columns] for row in whole["a"]
    ]
    assert load_training_data([entry(slates, depth=99)])[0]["b"][:] == whole["b"][:]


def test_bad_rows_are_skipped_where_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against a flag that no reader gets, rows that vanish in silence, and one entry that cannot differ."""
    rows = toy_rows(3)
    path = write(tmp_path / "slates.jsonl", [rows[0], rows[1] | {"query": ""}, rows[2]])
    with pytest.raises(ValueError, match=r"slates.jsonl.*2.*query"):
        load_training_data([path])
    data, records = load_training_data([path], skip_bad_rows=True)
    assert [len(part) for part in data.values()] == [2]
    assert records[0]["options"] == {"skip_bad_rows": True}
    assert "Skipped 1 of 3 rows" in caplog.text
    with pytest.raises(ValueError, match="query"):
        load_training_data([entry(path, skip_bad_rows=False)], skip_bad_rows=True)


@pytest.mark.parametrize(
    ("labels", "gold", "loss", "message"),
    [
        ([None, None], None, {}, "teaches nothing: none of its 3 slates has a positive .*, or two different labels"),
        ([1.0, 1.0], None, {}, "teaches nothing: none of its 3 slates"),
        ([1.0, 1.0 + 1e-9], None, {}, "teaches nothing: none of its 3 slates"),  # equal in float32
        ([None, None], [False, False], {"listwise_weight": 0}, "teaches nothing"),
        ([None, None], [True, False], {"contrastive_weight": 0}, "teaches nothing: .* has two different labels"),
        ([None, None], [True, True], {"contrastive_weight": 0, "listwise_weight": 0, "localized_weight": 1}, "teaches"),
        ([None, None], [True, False], {}, r"listwise_weight=2, and none of the slates has two different labels\."),
        ([1.0, 0.0], None, {"localized_weight": 1}, "localized_weight=1, and none of the slates has a gold document"),
    ],
)
def test_data_that_teaches_nothing_is_refused(
    tmp_path: Path, labels: list, gold: list | None, loss: dict[str, Any], message: str
) -> None:
    """Guards against a run to "loss 0" that reports success."""
    path = write(
        tmp_path / "none.jsonl",
        [{"query": f"q{row}", "documents": ["a", "b"], "labels": labels, "gold": gold} for row in range(3)],
    )
    with pytest.raises(ValueError, match=message) as error:
        load_training_data([path], loss=LossOptions(**loss))
    assert "none.jsonl" in str(error.value) or "_weight=" in str(error.value)


def test_share_that_teaches_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against data of which half is useless in silence, and good data that is refused."""
    rows = [
        {"query": "q", "documents": ["a", "b"], "labels": labels} for labels in ([1, 0], [None] * 2, [2, 2], [1, None])
    ]
    load_training_data([write(tmp_path / "some.jsonl", rows)])
    assert "some.jsonl: 2 of 4 slates (50.0%) teach nothing" in caplog.text
    caplog.clear()
    pairs = write(tmp_path / "pairs.jsonl", [{"anchor": "q", "positive": "p"}] * 2)
    load_training_data([write(tmp_path / "good.jsonl", toy_rows(3)), pairs])
    load_training_data([pairs], loss=LossOptions(listwise_weight=0))
    assert not caplog.records


def test_an_entry_that_is_not_json() -> None:
    """Guards against an error about a column of a line that nobody wrote."""
    for text in ('{"path": "a"', '{"path": "a", "path": "b"}', "{" * 200_000, '{"limit": NaN, "path": "a"}'):
        with pytest.raises(ValueError, match=r"^the data \{"):
            load_training_data([text])


def test_wrong_entries_are_refused(tmp_path: Path, slates: str) -> None:
    """Guards against a misspelt option that changes nothing, less data than was named, and lost or mixed metrics."""
    hits = [{"content": "d", "qid": "1", "docid": "a", "rank": 1, "score": 1.0}]
    results, qrels = write(tmp_path / "results.jsonl", [{"query": "q", "hits": hits}]), tmp_path / "qrels"
    qrels.write_text("1 0 a 1\n", encoding="utf-8")
    empty = write(tmp_path / "empty.jsonl", [])
    for load, entries, message in (
        (load_training_data, ['{"path": "a", "limt": 3}'], "Unknown field 'limt'.*did you mean 'limit'"),
        (load_training_data, ['{"limit": 3}'], "has no path"),
        (load_training_data, [entry(slates, depth=0)], "depth must be a whole number of at least 1, got 0"),
        (load_training_data, [empty], r"empty\.jsonl"),
        (load_evaluator, [slates, slates], "Two sets to evaluate on are called 'slates'"),
        (load_evaluator, [entry(results, qrels=str(qrels), skip_bad_rows=True)], "mend its bad rows"),
        (load_evaluator, [entry(results, qrels=str(qrels), depth=3)], "leave depth=3 out"),
    ):
        with pytest.raises(ValueError, match=message):
            load(entries)


def test_evaluators(tmp_path: Path, slates: str, tiny: E2Rank) -> None:
    """Guards against a best checkpoint by the last set alone, and against slates whose order shows the labels."""
    assert load_evaluator([]) == (None, [])
    hits = [{"content": f"text {place}", "docid": f"d{place}", "qid": "q", "rank": place} for place in range(3)]
    run, qrels = write(tmp_path / "run.jsonl", [{"query": "a query", "hits": hits}] * 3), tmp_path / "qrels.txt"
    qrels.write_text("q 0 d0 1\nq 0 elsewhere 3\n", encoding="utf-8")
    evaluator, records = load_evaluator([entry(slates, limit=6), entry(run, qrels=str(qrels), limit=2)])
    assert evaluator is not None
    assert [part.name for part in evaluator.evaluators] == ["slates", "run"]
    assert [part.own_first_stage for part in evaluator.evaluators] == [True, False]
    assert [record["slates"] for record in records] == [6, 2]
    assert len(evaluator.evaluators[1].queries) == 2
    metrics = evaluator(tiny)
    assert metrics["run_first_stage_ndcg@10"] < 1, "what was not retrieved counts"
    mean = (metrics["slates_listwise_ndcg@10"] + metrics["run_listwise_ndcg@10"]) / 2
    assert metrics["sequential_score"] == pytest.approx(mean)


def test_prompt_orders_are_kept_for_the_same_model_and_data(tmp_path: Path, slates: str, tiny: E2Rank) -> None:
    """Guards against a resumed run with other prompts, and against the orders of another model or other data."""
    tiny, cache = copy.deepcopy(tiny), tmp_path / "run" / "order.json"

    def ordered(text: str = slates) -> list[list[int]]:
        return list(with_prompt_orders(tiny, load_training_data([text])[0], cache)["a"]["prompt_order"])

    with_prompt_orders(tiny, load_training_data([slates])[0], cache)
    assert not cache.exists(), "the order is the given one"
    tiny.listwise.candidate_order = "similarity"
    rows = toy_rows(8, source="a")
    orders = ordered()
    assert orders == prompt_orders(tiny, [row["query"] for row in rows], [row["documents"] for row in rows])
    kept = read_json(cache)
    kept["orders"]["a"][0] = kept["orders"]["a"][0][::-1]
    write_json(cache, kept)
    assert ordered() == kept["orders"]["a"] != orders, "the premise: it is read"
    next(tiny.parameters()).data.flatten()[0] += 1
    ordered()
    other_weights = read_json(cache)["key"]
    ordered(entry(slates, limit=4, name="a"))
    assert len({kept["key"], other_weights, read_json(cache)["key"]}) == 3
