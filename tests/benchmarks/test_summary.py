"""The tables of README and docs: the right cells, tests of their own, nothing missing, nothing of several models."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from e2rank_st.benchmarks.results import Entry, Result, read_entries
from e2rank_st.benchmarks.summary import SHORT_SYSTEMS, SHORT_TASKS, SYSTEMS, put_into, short_summary, summary
from e2rank_st.cli.evaluate import app
from tests.benchmarks.toy_results import BASE, OWN, mteb, reranking, write_results

LEVELS = {"first_stage": 0.4, "baseline_embedding": 0.5, "baseline_rocchio": 0.55, "baseline_listwise": 0.56}
LEVELS |= {"embedding": 0.51, "rocchio": 0.3, "listwise": 0.6}
TABLE = """| task | queries | first stage | base | base + Rocchio | base, listwise \
| trained embedding | trained, listwise | over base, p | over base + Rocchio, p |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| DL21 bm25 † | 6 | 40.00 | 50.00 | 55.00 | 56.00 | 51.00 | 60.00 | +10.00, 0.0312 | +5.00, 0.0312 |

† on local copies of the data, not an official result.
"""
MTEB_TABLE = """| MTEB task | queries | base | trained embedding | trained, two stages | over base, p |
|---|---:|---:|---:|---:|---:|
| NFCorpus † | 6 | 22.50 | 32.50 | 38.50 | +16.00, 0.0312 |

† on local copies of the data, not an official result.
"""
SHORT = """| nDCG@10 | queries | first stage | base, embedding | bundled, embedding | bundled, listwise \
| listwise over base, p |
|---|---:|---:|---:|---:|---:|---:|
| TREC DL 2021, from BM25 † | 6 | 40.00 | 50.00 | 51.00 | 60.00 | +10.00, 0.0312 |
| TREC DL 2021, from SPLADE++ † | 6 | 40.00 | 50.00 | 51.00 | 60.00 | +10.00, 0.0312 |
| NFCorpus, test † | 6 | 40.00 | 50.00 | 51.00 | 60.00 | +10.00, 0.0312 |
| SciFact, test † | 6 | 40.00 | 50.00 | 51.00 | 60.00 | +10.00, 0.0312 |

† on local copies of the data, not an official result.
"""


def entries(folder: Path, *results: Result) -> list[Entry]:
    return read_entries([write_results(folder, *results)])


def test_tables_are_put_between_the_marks(tmp_path: Path):
    """Guards against a system under another's name, and against a file that keeps its old numbers."""
    four = [reranking(LEVELS, task=task, stage=stage) for task, stage in SHORT_TASKS]
    results = write_results(tmp_path / "results", *four, mteb("NFCorpus", "embedding", 0.3))
    files = {name: tmp_path / f"{name}.md" for name in ("readme", "docs")}
    for path in files.values():
        path.write_text("before\n\n<!-- results -->\nold\n<!-- /results -->\nafter\n", encoding="utf-8")
    options = [str(part) for name, path in files.items() for part in (f"--{name}", path)]
    for _ in range(2):
        done = CliRunner().invoke(app, ["table", str(results), *options])
        assert (done.exit_code, done.stdout) == (0, summary(read_entries([results])))
        for name, table in (("readme", SHORT), ("docs", done.stdout)):
            text = files[name].read_text(encoding="utf-8")
            assert text == f"before\n\n<!-- results -->\n{table}<!-- /results -->\nafter\n"
    files["readme"].write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has 0 places"):
        put_into(files["readme"], TABLE)


def test_mteb_stands_below(tmp_path: Path):
    """Guards against a table of MTEB's tasks that mixes up models and modes, or lacks a task because of a gap."""
    levels = {(OWN, "embedding"): 0.3, (OWN, "two-stage"): 0.36, (BASE, "embedding"): 0.2, (BASE, "two-stage"): 0.1}
    results = [mteb("NFCorpus", mode, level, model=model) for (model, mode), level in levels.items()]
    results += [reranking(LEVELS), mteb("SciFact", "embedding", 0.5)]  # SciFact: of one model alone
    assert summary(entries(tmp_path / "one", *results)) == f"{TABLE}\n{MTEB_TABLE}"
    gap = mteb("SciFact", "embedding", 0.4, model=BASE)
    with pytest.raises(ValueError, match=f"No results for two-stage of {OWN} on SciFact; run e2rank eval"):
        summary(entries(tmp_path / "gap", *results, gap))


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_missing_is_named(tmp_path: Path, name: str):
    """Guards against an empty cell."""
    whole, other = reranking(LEVELS), reranking(LEVELS, stage="splade")
    other = replace(other, systems={key: system for key, system in other.systems.items() if key != name})
    with pytest.raises(ValueError, match=f"No results for {name} on DL21 splade"):
        summary(entries(tmp_path / "one", whole, other))
    with pytest.raises(ValueError, match=f"There are no results for the system {name}; run"):
        summary(entries(tmp_path / "none", other))
    if name in SHORT_SYSTEMS:
        with pytest.raises(ValueError, match=rf"No results for {name} on dl21 splade"):
            short_summary(entries(tmp_path / "short", whole, other))


def test_several_models_are_refused(tmp_path: Path):
    """Guards against rows of two models in one table."""
    part = [reranking(LEVELS, task=task, stage=stage) for task, stage in list(SHORT_TASKS)[1:]]
    found = entries(tmp_path, reranking(LEVELS, model="org/other"), *part)
    for make in (summary, short_summary):
        with pytest.raises(
            ValueError, match=r"There are results of several models \(.*org/other.*\) for the system embedding"
        ):
            make(found)
