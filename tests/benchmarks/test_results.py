"""Result files: written and read as they are, refused when they are not; and those that lie in the repository."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e2rank_st.benchmarks.results import Result, column_with_marks, read_entries
from e2rank_st.bundled import BUNDLED, Bundled
from tests import ROOT
from tests.benchmarks.toy_results import BASE, OWN, mteb, of_another, official, reranking, write_results

RESULTS = ROOT / "eval" / "results"
LEVELS = {"first_stage": 0.4, "embedding": 0.5, "listwise_k3": 0.55, "listwise_k6": 0.6}
TOY: Any = {"compare_with": "embedding"}


@pytest.mark.parametrize(
    ("column", "model", "system", "published"),
    [
        ("NFCorpus", "e2rank-st/e2rank-minilm-l6", "embedding", 31.59),
        ("SciFact", "e2rank-st/e2rank-minilm-l6", "embedding", 64.51),
        ("DL21 bm25", "", "first_stage", 44.58),
        ("DL21 splade", "", "first_stage", 68.39),
    ],
)
def test_scores_that_others_published(column: str, model: str, system: str, published: float):
    """Guards against other vectors than the base's, a harness that scores otherwise, and candidates that are lost."""
    entries = read_entries([RESULTS / BUNDLED["bundled"].name])
    found = {(entry.column, entry.model, entry.name): 100 * entry.main for entry in entries}
    assert found[column, model, system] == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("bundled", BUNDLED.values(), ids=BUNDLED)
def test_the_curve_over_k_is_of_the_model_that_the_results_are_of(bundled: Bundled):
    """Guards against a figure of a former model beside the results of a new one."""
    parts = [read_entries([ROOT / "eval" / folder / bundled.name]) for folder in ("results", "prompt_size")]
    revisions = [{(entry.model, entry.revision) for entry in part if entry.model} for part in parts]
    assert revisions[0] == revisions[1]


@pytest.mark.parametrize("result", [reranking(LEVELS, **TOY), official("NFCorpus", "two-stage", 0.4, "main")])
def test_what_is_written_is_read(result: Result, tmp_path: Path):
    """Guards against a field that is lost on the way through a file."""
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result
    entries = read_entries([tmp_path])
    assert [entry.name for entry in entries] == list(result.systems)
    assert entries[-1].main == max(system.scores["ndcg@10"] for system in result.systems.values())


def test_entries_say_whose_they_are(tmp_path: Path):
    """Guards against the baseline's scores under the name of the model, and a first stage that is somebody's."""
    levels = {"first_stage": 0.4, "baseline_embedding": 0.5, "embedding": 0.5}
    found = read_entries([write_results(tmp_path, reranking(levels))])
    assert [entry.model for entry in found] == ["", BASE, OWN]
    assert [entry.revision for entry in found] == ["", "weights-ba9876543210", "weights-0123456789ab"]
    assert {entry.column for entry in found} == {"DL21 bm25"}
    assert (
        column_with_marks(replace(found[0], result=replace(found[0].result, partial=True)), found[1]) == "DL21 bm25 † ‡"
    )


def test_modes_of_mteb_are_compared(tmp_path: Path):
    """Guards against a gain that nobody tested, against a test of two models, and of tasks without scores by query."""
    results = [mteb("NFCorpus", mode, level) for mode, level in (("embedding", 0.3), ("two-stage", 0.4))]
    results += [mteb("NFCorpus", "two-stage", 0.2, model=BASE), mteb("STS12", "embedding", 0.8, searched=False)]
    plain, reranked, base, sts = read_entries([write_results(tmp_path, *results)])
    assert plain.system.comparison is base.system.comparison is sts.system.comparison is None
    found = reranked.system.comparison
    assert (found["against"], found["wins"], found["losses"]) == ("embedding", 6, 0)
    assert (found["difference"], found["p"]) == (pytest.approx(0.1), 2 / 2**6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("{}", "is not a result of e2rank eval"),
        ("[]", "is not a result of e2rank eval"),
        (json.dumps({"format": 1, "benchmark": "mteb"}), "has the format 1; this version reads format 2"),
        (json.dumps({"format": 2, "benchmark": "mteb", "systems": {}}), "is a damaged result"),
        (json.dumps({"format": 2}), "is a damaged result"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str, message: str):
    """Guards against a file that is passed over, and an old one whose numbers are looked for at other places."""
    (tmp_path / "odd.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"odd\.json {message}"):
        read_entries([tmp_path])


def test_odd_folders_are_refused(tmp_path: Path):
    """Guards against a folder that holds nothing, and against a system that stands in a table twice."""
    with pytest.raises(FileNotFoundError, match="holds no result files"):
        read_entries([tmp_path])
    twice = reranking(LEVELS, **TOY)
    with pytest.raises(ValueError, match="Two files hold first_stage of no model on DL21 bm25"):
        read_entries([write_results(tmp_path, twice, of_another(twice, "another"))])
