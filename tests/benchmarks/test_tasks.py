"""The table of tasks: complete, and its instructions are whole sentences."""

import dataclasses
import re
from itertools import pairwise

import pytest

from e2rank_st.benchmarks.tasks import TASKS, WEB_LISTWISE, find_tasks
from e2rank_st.modeling_e2rank import ListwiseRerank

DL = [f"dl{year}" for year in range(19, 24)]
BEIR = ["covid", "nfc", "touche", "dbpedia", "scifact", "signal", "news", "robust04"]


def test_all_tasks_of_the_paper_are_there():
    """Guards against a benchmark whose mean leaves a task out."""
    assert [task.name for task in find_tasks(["dl"])] == DL
    assert [task.name for task in find_tasks(["beir"])] == BEIR
    assert len(find_tasks(["bright"])) == 12
    assert [task.name for task in find_tasks(["dev"])] == [
        "nfcorpus-dev",
        "squad-dev",
        "mediqa-dev",
        "healthver-dev",
    ]
    assert len(TASKS) == 29 == len({task.title for task in TASKS.values()})


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_instructions_are_sentences(task):
    """Guards against a missing comma that turns instructions into single letters, and against doubled words."""
    retrieval, listwise = task.retrieval_instruction, task.listwise_instruction
    assert re.fullmatch(r"Given an? [\w -]+, retrieve [\w ,-]+[a-z]", retrieval.replace("DBPedia", "dbpedia"))
    assert re.fullmatch(r"Given an? [\w -]+ and some [\w ]+, rerank the [\w -]+", listwise)
    for text in (retrieval, listwise):
        words = text.split()
        assert len(words) >= 8
        assert all(word != after for word, after in pairwise(words))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_sources_are_named_or_said_to_be_missing(task):
    """Guards against an invented place, and against one of two files."""
    assert (task.hub_name is None) == (task.hub_qrels is None)
    assert task.hub_name or task.note
    assert not re.search(r"(^|\s)/|\.\./", str(dataclasses.asdict(task))), "a path of somebody's machine"
    assert task.relevant_from == (2 if task.benchmark == "dl" else 1)


def test_web_instruction_is_the_default_of_a_prompt():
    """Guards against two wordings of the instruction that published scores were taken with."""
    assert ListwiseRerank().instruction == WEB_LISTWISE


def test_rows_are_frozen_and_unknown_names_are_told_the_nearest():
    """Guards against a table that a run changes, and against a typing error that evaluates nothing."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["dl19"].title = "x"
    with pytest.raises(ValueError, match="Unknown task 'robust4'; did you mean 'robust04'"):
        find_tasks(["dl19", "robust4"])
    assert [task.name for task in find_tasks(["dl20", "dl", "dl20"])] == ["dl20", "dl19", "dl21", "dl22", "dl23"]
