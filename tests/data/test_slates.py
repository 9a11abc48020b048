"""Slates: what they refuse, and that a file of them comes back whole, or was never there."""

import hashlib
import json
import pickle
import sys
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import e2rank_st.data.slates as slates_module
from e2rank_st.data.slates import DataError, Manifest, Slate, read_manifest, read_slates, write_slates

MANIFEST = Manifest("facts", base_model="tiny", seed=3, settings={"num_candidates": 2})
SLATES = [
    Slate("how long do fleas live", ("100 days", "Beijing", "a week"), (2, None, 0.5), (True, False, False), "fleas"),
    Slate("capital of China", ("Beijing",), (1,), (False,), "facts"),
    Slate("Ελλάδα 🇬🇷", ("", "x\n\ty\u2028")[1:], (-0.1,), source="facts"),
]


def fields(**changes) -> dict:
    """The arguments of a good slate, but for the changes."""
    return {"query": "q", "documents": ("a", "b"), "labels": (1, 0), **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"query": " \n"}, "query: empty"),
        ({"query": None}, "query: missing"),
        ({"query": 3}, "query: not a string"),
        ({"query": "half \ud83d"}, "query: half a character"),
        ({"documents": ()}, "documents: empty"),
        ({"documents": "ab"}, "documents: not a list"),
        ({"documents": ("a", "")}, "documents: a text is empty"),
        ({"documents": ("a", None)}, "documents: a text is missing"),
        ({"documents": ("a", ("b",))}, "documents: a text is not a string"),
        ({"labels": (1,)}, "labels: lengths differ"),
        ({"labels": (1, float("nan"))}, "labels: not a number"),
        ({"labels": (1, float("inf"))}, "labels: not a number"),
        ({"labels": (1, "0")}, "labels: not a number"),
        ({"labels": (1, True)}, "labels: not a number"),
        ({"labels": None}, "labels: missing"),
        ({"gold": (True,)}, "gold: lengths differ"),
        ({"gold": (True, "false")}, "gold: not a flag"),
        ({"source": None}, "source: not a string"),
    ],
)
def test_slate_refuses_what_would_train_wrong(changes: dict, reason: str):
    """Guards against a slate that only fails, or trains wrong, hours later in a batch."""
    Slate(**fields())
    with pytest.raises(DataError, match=f"^{reason}; ") as error:
        Slate(**fields(**changes))
    assert error.value.reason == reason


def test_slate_is_normal_and_hashable():
    """Guards against two equal slates that differ because one was made of lists, integers or NumPy's numbers."""
    made = Slate("q", ["a", "b"], [np.float32(0.5), 1], [np.bool_(True), 0])  # type: ignore[arg-type]
    assert made == Slate("q", ("a", "b"), (0.5, 1.0), (True, False))
    assert len({made, Slate("q", ("a", "b"), (0.5, 1.0), (True, False))}) == 1
    assert Slate(**fields()).gold == (False, False)
    assert len(made) == 2


def test_gold_may_be_left_out_of_a_file(tmp_path: Path):
    """Guards against rows that have the README's form, and are refused."""
    rows = [{"query": "q", "documents": ["a", "b"], "labels": [1, None]} | more for more in ({}, {"gold": None})]
    (tmp_path / "slates.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert list(read_slates(tmp_path / "slates.jsonl")) == [Slate("q", ("a", "b"), (1.0, None))] * 2
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0] | {"gold": True}), encoding="utf-8")
    with pytest.raises(DataError, match="gold: not a list"):
        list(read_slates(tmp_path / "bad.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*none\.parquet'"):
        list(read_slates(tmp_path / "none.parquet"))


def test_distinct_keeps_each_text_once():
    """Guards against passages that are preferred to their own copies: best label, gold if any copy is, first place."""
    slate = Slate("q", ("a", "b", "a", "c", "b"), (0, None, 2, 1, None), (False, False, True, False, False), "s")
    assert slate.distinct() == Slate("q", ("a", "b", "c"), (2, None, 1), (True, False, False), "s")


def test_error_survives_a_process():
    """Guards against a worker's error that cannot be unpickled, and hangs or hides the reason."""
    again = pickle.loads(pickle.dumps(DataError("query", "empty", "give a text.").at("train.jsonl:7")))
    assert str(again) == "train.jsonl:7: query: empty; give a text."
    assert (again.place, again.reason) == ("train.jsonl:7", "query: empty")


def test_file_comes_back_whole(tmp_path: Path):
    """Guards against labels, flags, Unicode or the order lost on the way through the file."""
    path = tmp_path / "train.parquet"
    written = write_slates(path, iter(SLATES), MANIFEST)
    assert list(read_slates(path)) == SLATES
    assert [slate.source for slate in read_slates(path, source="other")] == ["other"] * 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train.manifest.json", "train.parquet"]
    assert written == read_manifest(path)
    assert replace(written, counts={}, sha256="") == MANIFEST
    assert written.counts == {
        "slates": 3, "documents": 5, "judged": 4, "gold": 1, "sources": {"facts": 2, "fleas": 1}
    }  # fmt: skip
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert write_slates(tmp_path / "again.parquet", SLATES, MANIFEST) == written, "the same slates give the same bytes"
    path.with_suffix(".jsonl").write_text("\n".join(json.dumps(asdict(slate)) for slate in SLATES), encoding="utf-8")
    assert list(read_slates(path.with_suffix(".jsonl"))) == SLATES


def test_nothing_is_left_of_a_broken_write(tmp_path: Path):
    """Guards against half a file, or a new file beside an old manifest, when the slates fail on the way."""

    def failing():
        yield from SLATES
        raise RuntimeError("the miner died")

    for _ in range(2):
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        with pytest.raises(RuntimeError, match="the miner died"):
            write_slates(tmp_path / "train.parquet", failing(), MANIFEST)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
        write_slates(tmp_path / "train.parquet", SLATES[:1], MANIFEST)


def test_write_refuses_at_the_door(tmp_path: Path):
    """Guards against hours of mining that end with an error about their file's name or manifest."""
    slates = iter(SLATES)
    with pytest.raises(ValueError, match=r"ends in '\.parquet'"):
        write_slates(tmp_path / "train.jsonl", slates, MANIFEST)
    with pytest.raises(TypeError, match="JSON"):
        write_slates(tmp_path / "train.parquet", slates, replace(MANIFEST, settings={"model": object()}))
    assert next(slates) == SLATES[0]
    with pytest.raises(ValueError, match="Got no slates"):
        write_slates(tmp_path / "train.parquet", [], MANIFEST)
    assert list(tmp_path.iterdir()) == []
    # A data set of unknown origin does not pass for a known one.
    path = tmp_path / "train.parquet"
    with pytest.raises(FileNotFoundError):
        read_manifest(path)
    path.with_suffix(".manifest.json").write_text('{"source": "facts", "extra": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        read_manifest(path)


def test_writing_takes_a_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against all slates in memory before the first is written: bounded in number and in text."""
    monkeypatch.setattr(slates_module, "GROUP_SLATES", 4)
    monkeypatch.setattr(slates_module, "GROUP_CHARACTERS", 30)
    short, long = Slate("q", ("a",), (1,)), Slate("q", ("a" * 31,), (1,))
    path = tmp_path / "train.parquet"
    write_slates(path, [*[short] * 5, long, *[short] * 5], MANIFEST)
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert groups == [4, 2, 4, 1]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_reading_streams(form: str, tmp_path: Path):
    """Guards against memory that grows with the file: 13 MB of text pass through less than 3 MB."""
    path = tmp_path / f"train.{form}"
    slates = [Slate(f"query {number}", (f"{number} " * 1000,), (1,)) for number in range(3000)]
    if form == "parquet":
        write_slates(path, slates, MANIFEST)
    else:
        path.write_text("\n".join(json.dumps(asdict(slate)) for slate in slates), encoding="utf-8")
    del slates
    tracemalloc.start()
    try:
        assert sum(len(slate.documents[0]) for slate in read_slates(path)) > 13e6
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a bare ModuleNotFoundError that does not say what to install."""
    write_slates(tmp_path / "train.parquet", SLATES, MANIFEST)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'e2rank-st\[train\]'"):
        next(read_slates(tmp_path / "train.parquet"))
    with pytest.raises(ImportError, match=r"pip install 'e2rank-st\[train\]'"):
        write_slates(tmp_path / "other.parquet", SLATES, MANIFEST)
