"""The results that lie in the repository: they prove the harness, and are of the bundled model as it is."""

import pytest

from e2rank_st.benchmarks.results import Row, read_rows
from tests import ROOT

RESULTS = ROOT / "eval" / "results"
BASE = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    pytest.importorskip("pytrec_eval")
    return read_rows([RESULTS])


@pytest.mark.parametrize(("task", "published"), [("NFCorpus", 31.59), ("SciFact", 64.51)])
def test_mteb_gives_the_base_its_published_score(rows: list[Row], task: str, published: float):
    """Guards against a harness that embeds, cuts or scores otherwise than the leaderboard's."""
    (row,) = [row for row in rows if (row.task, row.model, row.system) == (task, BASE, "embedding")]
    assert 100 * row.scores["main"] == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize(("first_stage", "known"), [("bm25", 44.58), ("splade", 68.39)])
def test_first_stages_have_their_known_scores(rows: list[Row], first_stage: str, known: float):
    """Guards against candidates that are lost, reordered or judged by other grades."""
    (row,) = [row for row in rows if (row.column, row.system) == (f"DL21 {first_stage}", "first_stage")]
    assert row.queries == 53
    assert 100 * row.scores["main"] == pytest.approx(known, abs=0.005)
