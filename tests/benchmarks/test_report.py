"""Results → tables and figures: golden tables, marks, gaps, and pictures that are not empty."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from e2rank_st.benchmarks.figures import FIGURES, draw
from e2rank_st.benchmarks.report import make_tables, p_value
from e2rank_st.benchmarks.results import read_entries
from e2rank_st.cli.evaluate import app
from tests.benchmarks.toy_results import QUERIES, mteb, reranking, write_results

pytest.importorskip("matplotlib")

LEVELS = {"first_stage": 0.4, "embedding": 0.5, "listwise_k3": 0.55, "listwise_k6": 0.6}
TOY: Any = {"compare_with": "embedding", "model": "e2rank_mini"}
DL19 = reranking(LEVELS, task="dl19", local=False, **TOY)
DL20 = reranking({name: level + 0.1 for name, level in LEVELS.items()}, task="dl20", partial=True, **TOY)
MODES = [mteb("NFCorpus", mode, level, model="e2rank_mini") for mode, level in (("embedding", 0.3), ("two-stage", 0.4))]


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


SCORES = """**nDCG@10, reranking**

| system | model | DL19 bm25 | DL20 bm25 † ‡ | mean |
|---|---|---:|---:|---:|
| first_stage |  | 40.00 | 50.00 | 45.00 |
| embedding | e2rank_mini | 50.00 | 60.00 | 55.00 |
| listwise_k3 | e2rank_mini | 55.00 | 65.00 | 60.00 |
| listwise_k6 | e2rank_mini | 60.00 | 70.00 | 65.00 |

† on local copies of the data, not an official result; ‡ on some of the queries only.
"""
COMPARISONS_CSV = """task,system,against,difference,95 % from,to,p,wins,ties,losses
DL19 bm25,first_stage,embedding,-10.00,-10.00,-10.00,0.0312,6,0,0
DL19 bm25,listwise_k3,embedding,+5.00,+5.00,+5.00,0.0312,6,0,0
DL19 bm25,listwise_k6,embedding,+10.00,+10.00,+10.00,0.0312,6,0,0
"""
LATENCY = """**Milliseconds to rerank the candidates of a query, median and 95th percentile, reranking**

| task | system | model | stored | p95 | no store | p95 | tokens |
|---|---|---|---:|---:|---:|---:|---:|
| DL19 bm25 | embedding | e2rank_mini | 50.0 | 60.0 | 1000.0 | 60.0 | 300 |
| DL19 bm25 | listwise_k3 | e2rank_mini | 55.0 | 66.0 | 1100.0 | 66.0 | 300 |
| DL19 bm25 | listwise_k6 | e2rank_mini | 60.0 | 72.0 | 1200.0 | 72.0 | 300 |
"""
MTEB_COMPARISONS = """**Differences of nDCG@10, mteb: bootstrap interval, paired randomisation test**

| task | system | against | difference | 95 % from | to | p | wins | ties | losses |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|
| NFCorpus † | two-stage | embedding | +10.00 | +10.00 | +10.00 | 0.0312 | 6 | 0 | 0 |
"""


def test_golden_tables(tmp_path: Path):
    """Guards against numbers in the wrong column, and marks that are lost."""
    two = write_results(tmp_path / "two", DL19, DL20)
    tables = {table.name: table for table in make_tables(read_entries([two]))}
    assert tables["reranking-scores"].markdown == SCORES
    one = {table.name: table for table in make_tables(read_entries([two / "00.json"]))}
    assert one["reranking-comparisons"].csv == COMPARISONS_CSV
    assert one["reranking-latency"].markdown == LATENCY
    assert one["reranking-metrics"].header == ("task", "system", "model", "ndcg@10", "map")


def test_mteb_results(tmp_path: Path):
    """Guards against modes that are averaged, and a gain that nobody tested."""
    write_results(tmp_path / "org__mini", *MODES)
    tables = {table.name: table for table in make_tables(read_entries([write_results(tmp_path, DL19)]))}
    assert tables["mteb-comparisons"].markdown.startswith(MTEB_COMPARISONS)
    assert tables["mteb-scores"].rows == (("embedding", "e2rank_mini", "30.00"), ("two-stage", "e2rank_mini", "40.00"))
    assert "mteb-latency" not in tables


def test_two_models_of_one_system_are_told_apart(tmp_path: Path):
    """Guards against the base's gains under the name of the model that was trained from it, in tables and figures."""
    base = [mteb("NFCorpus", mode, level, model="org/base") for mode, level in (("embedding", 0.3), ("two-stage", 0.2))]
    entries = read_entries([write_results(tmp_path, *MODES, *base)])
    (table,) = make_tables(entries, ["comparisons"])
    assert [row[1:4] for row in table.rows] == [
        ("two-stage (e2rank_mini)", "embedding", "+10.00"),
        ("two-stage (base)", "embedding", "-10.00"),
    ]
    panels = draw(entries)["mteb-gains"].axes
    titles = [axes.get_title() for axes in panels]
    assert titles == [f"NFCorpus †\ntwo-stage ({name}) − embedding" for name in ("e2rank_mini", "base")]
    for axes, gain in zip(panels, (10, -10), strict=True):
        heights = [height for area in axes.patches for height in area.get_data().values if height]
        assert heights == pytest.approx([gain] * len(QUERIES))


def test_tasks_without_search_leave_cells_empty(tmp_path: Path):
    """Guards against a mean over fewer tasks, and a table of metrics that tasks do not share."""
    sts = mteb("STS12", "embedding", 0.8, model="e2rank_mini", searched=False)
    entries = read_entries([write_results(tmp_path, *MODES, sts)])
    (table,) = make_tables(entries, ["scores", "metrics"])
    assert table.header == ("system", "model", "NFCorpus †", "STS12 †", "mean")
    assert table.rows == (
        ("embedding", "e2rank_mini", "30.00", "80.00", "55.00"),
        ("two-stage", "e2rank_mini", "40.00", "", ""),
    )
    assert draw(entries)["mteb-scores"].axes


def test_a_figure_says_what_it_has_no_place_for(tmp_path: Path):
    """Guards against tasks that nobody misses."""
    tasks = [replace(DL19, task=f"t{number}", title=f"T{number}") for number in range(7)]
    figure = draw(read_entries([write_results(tmp_path, *tasks)]), ["gains"])["reranking-gains"]
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 12
    assert "the first 12 of 14" in figure.get_suptitle()


def test_a_stored_p_value_reads_as_the_one_computed():
    """Guards against two values of one comparison in two tables."""
    assert p_value(0.00315) == p_value(0.003149999) == p_value(0.003150001)
    assert p_value(1e-6) == "<0.0001"


def ink(path: Path) -> float:
    """Share of the pixels of a picture that are not white."""
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    return float((pixels < 0.9).any(axis=-1).mean())


def test_report_prints_tables_and_draws_figures(tmp_path: Path):
    """Guards against empty pictures, and against files that nobody asked for."""
    folder = write_results(tmp_path / "results", DL19, DL20)
    done = invoke(folder, "--figures", tmp_path / "figures")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(SCORES) and done.stdout.count("\n\n**") == 3
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {Path(line).name for line in done.stderr.splitlines()} == {f"reranking-{n}.png" for n in FIGURES}
    for name in written:
        assert ink(tmp_path / "figures" / name) > 0.02, name
    assert {path.name for path in tmp_path.iterdir()} == {"results", "figures"}


def test_only_some_parts(tmp_path: Path):
    """Guards against a figure that replaces those of other results in its folder, and against a curve of one point."""
    folder = write_results(tmp_path / "results", DL19)
    places = ["--output-dir", tmp_path / "tables", "--figures", tmp_path / "figures"]
    done = invoke(folder, *places, "--only", "prompt-documents,metrics")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"reranking-metrics.md", "reranking-metrics.csv"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"reranking-prompt-documents.png"}
    systems = {name: system for name, system in DL19.systems.items() if name != "listwise_k3"}
    one = write_results(tmp_path / "one", replace(DL19, systems=systems))
    done = invoke(one, "--figures", tmp_path / "none", "--only", "prompt-documents")
    assert (done.exit_code, done.stderr) == (0, "no data for these figures\n")
    assert not (tmp_path / "none").exists()


def test_systems_differ_without_colour(tmp_path: Path):
    """Guards against figures that say nothing in black and white."""
    figure = draw(read_entries([write_results(tmp_path, DL19)]), ["scores"])["reranking-scores"]
    hatches = [bar.get_hatch() for bar in figure.axes[0].patches]
    assert len(hatches) == 4 == len(set(hatches))
