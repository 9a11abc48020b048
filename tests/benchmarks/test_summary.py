"""The tables of README and docs: the right cells, tests of their own, nothing missing, nothing of several models."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from e2rank_st.benchmarks.results import Entry, Result, read_entries
from e2rank_st.benchmarks.summary import SHORT_TASKS, SYSTEMS, put_into, short_summary, summary
from e2rank_st.cli.evaluate import app
from tests.benchmarks.toy_results import OWN, mteb, reranking, write_results

LEVELS = {"first_stage": 0.4, "embedding": 0.5, "rocchio": 0.55, "listwise": 0.6}
TABLE = """### e2rank-toy

| task | queries | first stage | vectors alone | vectors + Rocchio | listwise | fused \
| listwise over vectors alone, p | listwise over vectors + Rocchio, p |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| DL21 bm25 † | 6 | 40.00 | 50.00 | 55.00 | 60.00 |  | +10.00, 0.0312 | +5.00, 0.0312 |

† on local copies of the data, not an official result.
"""
MTEB_TABLE = """| MTEB task | queries | vectors alone | two stages | gain, p |
|---|---:|---:|---:|---:|
| NFCorpus † | 6 | 32.50 | 38.50 | +6.00, 0.0312 |

† on local copies of the data, not an official result.
"""
SHORT = """| nDCG@10 | model | queries | first stage | vectors alone | reranked | gain, p |
|---|---|---:|---:|---:|---:|---:|
| TREC DL 2021, from BM25 † | e2rank-toy | 6 | 40.00 | 50.00 | 60.00 | +10.00, 0.0312 |
| TREC DL 2021, from BM25 † | other | 6 | 40.00 | 50.00 | 55.00 | +5.00, 0.0312 |
| TREC DL 2021, from SPLADE++, fused † | e2rank-toy | 6 | 65.00 | 50.00 | 70.00 | +5.00, 0.0312 |
| TREC DL 2021, from SPLADE++, fused † | other | 6 | 65.00 | 50.00 | 70.00 | +5.00, 0.0312 |
| NFCorpus, test † | e2rank-toy | 6 | 40.00 | 50.00 | 60.00 | +10.00, 0.0312 |
| NFCorpus, test † | other | 6 | 40.00 | 50.00 | 55.00 | +5.00, 0.0312 |
| SciFact, test † | e2rank-toy | 6 | 40.00 | 50.00 | 60.00 | +10.00, 0.0312 |
| SciFact, test † | other | 6 | 40.00 | 50.00 | 55.00 | +5.00, 0.0312 |

† on local copies of the data, not an official result.
"""


def entries(folder: Path, *results: Result) -> list[Entry]:
    return read_entries([write_results(folder, *results)])


def four(model: str = OWN, listwise: float = 0.6) -> list[Result]:
    """Results on the README's four tasks, of which one has a strong first stage."""
    strong = {"splade": {"first_stage": 0.65, "fused": 0.7}}
    levels = LEVELS | {"listwise": listwise}
    return [
        reranking(levels | strong.get(stage, {}), task=task, stage=stage, model=model, compare_with="embedding")
        for task, stage in SHORT_TASKS
    ]


def test_tables_are_put_between_the_marks(tmp_path: Path):
    """Guards against a system or model under another's name, and against a file that keeps its old numbers."""
    ours = write_results(
        tmp_path / "ours", *four(), mteb("NFCorpus", "embedding", 0.3), mteb("NFCorpus", "two-stage", 0.36)
    )
    other = write_results(tmp_path / "other", *four("org/other", 0.55))
    files = {name: tmp_path / f"{name}.md" for name in ("readme", "docs")}
    for path in files.values():
        path.write_text("before\n\n<!-- results -->\nold\n<!-- /results -->\nafter\n", encoding="utf-8")
    options = [str(part) for name, path in files.items() for part in (f"--{name}", path)]
    for _ in range(2):
        done = CliRunner().invoke(app, ["table", str(ours), str(other), *options])
        full = summary([read_entries([ours]), read_entries([other])])
        assert (done.exit_code, done.stdout) == (0, full)
        assert full.index("### e2rank-toy") < full.index(MTEB_TABLE) < full.index("### other")
        for name, table in (("readme", SHORT), ("docs", done.stdout)):
            text = files[name].read_text(encoding="utf-8")
            assert text == f"before\n\n<!-- results -->\n{table}<!-- /results -->\nafter\n"
    files["readme"].write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has 0 places"):
        put_into(files["readme"], TABLE)


def test_mteb_stands_below(tmp_path: Path):
    """Guards against a table of MTEB's tasks that mixes up modes, or lacks a task because of a gap."""
    results = [mteb("NFCorpus", mode, level) for mode, level in {"embedding": 0.3, "two-stage": 0.36}.items()]
    results.append(reranking(LEVELS, compare_with="embedding"))
    assert summary([entries(tmp_path / "one", *results)]) == f"{TABLE}\n{MTEB_TABLE}"
    gap = mteb("SciFact", "embedding", 0.4)
    with pytest.raises(ValueError, match="No results for two-stage on SciFact; run e2rank eval"):
        summary([entries(tmp_path / "gap", *results, gap)])


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_missing_is_named(tmp_path: Path, name: str):
    """Guards against an empty cell."""
    whole, other = (reranking(LEVELS, stage=stage, compare_with="embedding") for stage in ("bm25", "splade"))
    other = replace(other, systems={key: system for key, system in other.systems.items() if key != name})
    with pytest.raises(ValueError, match=f"No results for {name} on DL21 splade"):
        summary([entries(tmp_path / "one", whole, other)])
    with pytest.raises(ValueError, match=r"No results for .*fused on dl21 splade"):
        short_summary([entries(tmp_path / "short", whole, other)])


@pytest.mark.parametrize("make", [summary, short_summary])
def test_several_models_are_refused(tmp_path: Path, make):
    """Guards against rows of two models in one table, and against a table of nothing."""
    mixed = [reranking(LEVELS, model="org/other", compare_with="embedding"), *four()[1:]]
    with pytest.raises(ValueError, match=r"There are results of several models \(.*org/other.*\)"):
        make([entries(tmp_path / "mixed", *mixed)])
    with pytest.raises(ValueError, match="There are no results of reranking; run"):
        make([entries(tmp_path / "none", mteb("NFCorpus", "embedding", 0.3))])
