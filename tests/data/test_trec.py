"""Run files: reading returns the written scores, and runs that trec_eval would misread are refused."""

from pathlib import Path

import pytest

from e2rank_st.data.files import DataError
from e2rank_st.data.trec import read_run, write_run

RUN = {"q2": {"b": 0.3333333432674408, "a": 0.1, "c": -1e-7}, "q1": {"x": 12.5}}


def test_round_trip(tmp_path: Path):
    """Guards against scores that are ranks or rounded, queries in a different order, and ranks that decide."""
    write_run(tmp_path / "deep" / "run.trec", RUN, "listwise")
    lines = (tmp_path / "deep" / "run.trec").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "q2 Q0 b 1 0.3333333432674408 listwise"
    assert lines[3] == "q1 Q0 x 1 12.5 listwise"
    found = read_run(tmp_path / "deep" / "run.trec")
    assert found == RUN
    assert [list(scores) for scores in found.values()] == [["b", "a", "c"], ["x"]]
    # As in trec_eval, scores decide and not ranks; ties keep the order of the file.
    (tmp_path / "run").write_text("q Q0 a 1 0.5 s\nq Q0 c 2 0.5 s\n\nq Q0 b 3 0.9 s\n", encoding="utf-8")
    assert list(read_run(tmp_path / "run")["q"]) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 a 1 0.5\n", r"run:1: line: not a result; got 'q Q0 a 1 0.5'"),
        ("q Q0 a 1 0.5 s\nq Q0 a 2 0.4 s\n", r"run:2: docid: appears twice"),
        ("q Q0 a 1 nan s\n", r"run:1: score: not a number"),
    ],
)
def test_bad_lines_are_refused_with_their_place(tmp_path: Path, content: str, message: str):
    """Guards against lines that are left out without a word."""
    (tmp_path / "run").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run")


def test_ids_with_white_space_are_refused(tmp_path: Path):
    """Guards against a line with seven fields, and against half of a run."""
    for run in ({"a query": {"a": 1.0}}, {"q": {"a b": 1.0}}, {"": {"a": 1.0}}):
        with pytest.raises(ValueError, match="cannot hold white space"):
            write_run(tmp_path / "run", run, "s")
    assert not list(tmp_path.iterdir())
