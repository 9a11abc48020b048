"""MTEB's tasks by name, and the scores by query that they note."""

import pytest

pytest.importorskip("mteb")

from e2rank_st.benchmarks.mteb_tasks import find_tasks, leaves, one_level, searches


@pytest.mark.parametrize(
    ("name", "count"), [("MTEB(eng, v2)", 41), ("BEIR", 15), ("NanoBEIR", 13), ("BRIGHT(v1.1)", 20)]
)
def test_benchmarks(name: str, count: int):
    """Guards against a set that the installed MTEB calls otherwise, and against tasks that were cut to no language."""
    tasks = find_tasks([], [name])
    assert len(tasks) == count
    assert all(leaf.hf_subsets for task in tasks for leaf in leaves(task))
    assert sum(searches(task) for task in tasks) == {41: 12}.get(count, count)


@pytest.mark.parametrize(
    ("names", "benchmarks", "message"),
    [(["NFCorpu"], [], "Did you mean: 'NFCorpus'"), ([], ["BEIRR"], "Did you mean: BEIR")],
)
def test_unknown_names(names: list[str], benchmarks: list[str], message: str):
    """Guards against a name that is left out silently."""
    with pytest.raises(ValueError, match=message):
        find_tasks(names, benchmarks)


def test_one_level():
    """Guards against queries of two splits that have the same id."""
    assert one_level({}) == {}
    assert one_level({"T/default/test": {"q": 0.5}}) == {"q": 0.5}
    assert one_level({"T/a/test": {"q": 0.5}, "T/b/test": {"q": 1.0}}) == {"T/a/test/q": 0.5, "T/b/test/q": 1.0}
