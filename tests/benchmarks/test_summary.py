"""The README's table: the right cells, tests of its own, and nothing that is missing or of several models."""

from pathlib import Path

import pytest

from e2rank_st.benchmarks.results import read_rows
from e2rank_st.benchmarks.summary import SYSTEMS, main, put_into, summary
from tests.publishing.card.data import BASE, OWN, mteb, reranking, write_results

LEVELS = {"first_stage": 0.4, "baseline_embedding": 0.5, "baseline_rocchio": 0.55, "baseline_listwise": 0.56}
LEVELS |= {"embedding": 0.51, "rocchio": 0.3, "listwise": 0.6}
TABLE = """| task | queries | first stage | base | base + Rocchio | base, listwise \
| trained embedding | trained, listwise | over base, p | over base + Rocchio, p |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| DL21 bm25 † | 6 | 40.00 | 50.00 | 55.00 | 56.00 | 51.00 | 60.00 | +10.00, 0.0312 | +5.00, 0.0312 |

† on local copies of the data, no official result.
"""

MTEB_TABLE = """| MTEB task | queries | base | trained embedding | trained, two stages | over base, p |
|---|---:|---:|---:|---:|---:|
| NFCorpus † | 6 | 22.50 | 32.50 | 38.50 | +16.00, 0.0312 |

† on local copies of the data, no official result.
"""


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Guards against a system under another's name, and against a README that keeps its old numbers."""
    results = write_results(tmp_path / "results", reranking("bm25", LEVELS), mteb("NFCorpus", "embedding", 0.3))
    readme = tmp_path / "README.md"
    readme.write_text("before\n\n<!-- results -->\nold\n<!-- /results -->\nafter\n", encoding="utf-8")
    for _ in range(2):
        assert main([str(results), "--readme", str(readme)]) == 0
        assert capsys.readouterr().out == TABLE
        text = readme.read_text(encoding="utf-8")
        assert text == f"before\n\n<!-- results -->\n{TABLE}<!-- /results -->\nafter\n"
    readme.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has 0 places"):
        put_into(readme, TABLE)


def test_what_mteb_measured_stands_below(tmp_path: Path):
    """Guards against a table of MTEB's tasks that mixes up models and modes, or lacks a task because of a gap."""
    levels = {(OWN, "embedding"): 0.3, (OWN, "two-stage"): 0.36, (BASE, "embedding"): 0.2, (BASE, "two-stage"): 0.1}
    results = [mteb("NFCorpus", mode, level, model=model) for (model, mode), level in levels.items()]
    results += [reranking("bm25", LEVELS), mteb("SciFact", "embedding", 0.5)]  # SciFact: of one model alone
    assert summary(read_rows([write_results(tmp_path / "one", *results)])) == f"{TABLE}\n{MTEB_TABLE}"
    gap = mteb("SciFact", "embedding", 0.4, model=BASE)
    with pytest.raises(ValueError, match=f"No results for two-stage of {OWN} on SciFact"):
        summary(read_rows([write_results(tmp_path / "gap", *results, gap)]))


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_missing_is_named(tmp_path: Path, name: str):
    """Guards against an empty cell."""
    levels = {other: level for other, level in LEVELS.items() if other != name}
    complete, other = reranking("bm25", LEVELS), reranking("splade", LEVELS)
    del other["systems"][name]
    with pytest.raises(ValueError, match=f"No results for {name} of"):
        summary(read_rows([write_results(tmp_path / "one", complete, other)]))
    if name != "baseline_embedding":  # what the toy results are compared with
        with pytest.raises(ValueError, match=f"For {name} there are no results"):
            summary(read_rows([write_results(tmp_path / "none", reranking("bm25", levels))]))


def test_several_models_are_refused(tmp_path: Path):
    """Guards against rows of two models in one table."""
    other = reranking("splade", LEVELS)
    other["models"]["model"]["name"] = "org/other"
    with pytest.raises(ValueError, match=r"For embedding there are results of several models: .*org/other"):
        summary(read_rows([write_results(tmp_path, reranking("bm25", LEVELS), other)]))
