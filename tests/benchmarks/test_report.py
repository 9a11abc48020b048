"""Results → rows, tables and figures: golden tables, marks, gaps, and pictures that are not empty."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e2rank_st.benchmarks.figures import FIGURES, draw
from e2rank_st.benchmarks.report import FORMATS, latex, main, make_tables, markdown, p_value
from e2rank_st.benchmarks.results import check_complete, read_rows

pytest.importorskip("matplotlib")

QUERIES = [f"q{number}" for number in range(6)]


def reranking(task: str = "dl19", *, local: bool = False, partial: bool = False, shift: float = 0.0) -> dict[str, Any]:
    """A result file of run_reranking.py, with a listwise system for each of two K."""
    kinds = {
        "first_stage": ("first_stage", None, 0.4),
        "embedding": ("embedding", None, 0.5),
        "listwise_k3": ("listwise", 3, 0.55),
        "listwise_k6": ("listwise", 6, 0.6),
    }
    systems: dict[str, Any] = {}
    for name, (kind, count, level) in kinds.items():
        score = level + shift
        per_query = {query: score + 0.02 * (place - 2.5) for place, query in enumerate(QUERIES)}
        timed = None if kind == "first_stage" else {"median": 100 * level, "p95": 120 * level, "queries": 6}
        systems[name] = {
            "settings": {"kind": kind, **({"num_prompt_documents": count} if count else {})},
            "scores": {"ndcg@10": score, "map": score / 2},
            "interval": [score - 0.04, score + 0.04],
            "latency": {"stored": timed, "fresh": timed and {**timed, "median": 2000 * level}},
            "tokens": timed and {"median": 300.0, "p95": 320.0, "queries": 6},
            "per_query": {"ndcg@10": per_query, "map": per_query},
        }
        if name != "embedding":
            difference = level - 0.5
            comparison = {"against": "embedding", "difference": difference, "interval": [difference, difference]}
            systems[name]["comparison"] = {**comparison, "p": 0.03125, "wins": 6, "ties": 0, "losses": 0}
    return {
        "benchmark": "reranking",
        "task": task,
        "title": task.upper(),
        "first_stage": "bm25",
        "local": local,
        "partial": partial,
        "queries": 6,
        "main_metric": "ndcg@10",
        "models": {"model": {"name": "e2rank_mini"}},
        "systems": systems,
    }


def mteb(mode: str, level: float, task: str = "NFCorpus") -> dict[str, Any]:
    """A result file of run_mteb.py."""
    return {
        "task": task,
        "mode": mode,
        "benchmark": "mteb",
        "model": {"name": "e2rank_mini", "revision": "weights-0123"},
        "main_score": level,
        "scores": {"ndcg_at_10": level, "map_at_10": level / 2},
        "per_query": {"ndcg@10": {query: level + 0.01 * place for place, query in enumerate(QUERIES)}},
        "local": True,
        "partial": False,
    }


def write(folder: Path, **results: dict[str, Any]) -> Path:
    """Write result files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


SCORES = """**nDCG@10, reranking**

| system | model | DL19 bm25 | DL20 bm25 † ‡ | mean |
|---|---|---:|---:|---:|
| first_stage |  | 40.00 | 50.00 | 45.00 |
| embedding | e2rank_mini | 50.00 | 60.00 | 55.00 |
| listwise_k3 | e2rank_mini | 55.00 | 65.00 | 60.00 |
| listwise_k6 | e2rank_mini | 60.00 | 70.00 | 65.00 |

† on local copies of the data, no official result; ‡ on some of the queries only.
"""
SCORES_TEX = r"""% nDCG@10, reranking
\begin{tabular}{llrrr}
\toprule
system & model & DL19 bm25 & DL20 bm25 \dag{} \ddag{} & mean \\
\midrule
first\_stage &  & 40.00 & 50.00 & 45.00 \\
embedding & e2rank\_mini & 50.00 & 60.00 & 55.00 \\
listwise\_k3 & e2rank\_mini & 55.00 & 65.00 & 60.00 \\
listwise\_k6 & e2rank\_mini & 60.00 & 70.00 & 65.00 \\
\bottomrule
\end{tabular}

\dag{} on local copies of the data, no official result.

\ddag{} on some of the queries only.
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
    """Guards against numbers in the wrong column, marks that are lost, and LaTeX that does not compile."""
    two = write(tmp_path / "two", dl19=reranking(), dl20=reranking("dl20", local=True, partial=True, shift=0.1))
    tables = {table.name: table for table in make_tables(read_rows([two]))}
    assert markdown(tables["reranking-scores"]) == SCORES
    assert latex(tables["reranking-scores"]) == SCORES_TEX
    one = {table.name: table for table in make_tables(read_rows([two / "dl19.json"]))}
    assert FORMATS["csv"](one["reranking-comparisons"]) == COMPARISONS_CSV
    assert markdown(one["reranking-latency"]) == LATENCY
    assert one["reranking-metrics"].header == ("task", "system", "model", "ndcg@10", "map")


def test_mteb_results(tmp_path: Path):
    """Guards against modes that are averaged, and a gain that nobody tested."""
    write(tmp_path / "org__mini", one=mteb("embedding", 0.3), two=mteb("two-stage", 0.4))
    rows = read_rows([write(tmp_path, rerank=reranking())])
    assert [(row.benchmark, row.system) for row in rows if row.benchmark == "mteb"] == [
        ("mteb", "embedding"),
        ("mteb", "two-stage"),
    ]
    tables = {table.name: table for table in make_tables(rows)}
    assert markdown(tables["mteb-comparisons"]).startswith(MTEB_COMPARISONS)
    assert tables["mteb-scores"].rows == (("embedding", "e2rank_mini", "30.00"), ("two-stage", "e2rank_mini", "40.00"))
    assert "mteb-latency" not in tables


def test_two_models_of_one_system_are_told_apart(tmp_path: Path):
    """Guards against the base's gains under the name of the model that was trained from it, in tables and figures."""
    trained = [mteb("embedding", 0.3), mteb("two-stage", 0.4)]
    base = [
        result | {"model": {"name": "org/base", "revision": "0"}} for result in (trained[0], mteb("two-stage", 0.2))
    ]
    names = dict(zip(("a", "b", "c", "d"), (*trained, *base), strict=True))
    rows = read_rows([write(tmp_path, **names)])
    (table,) = [table for table in make_tables(rows) if table.name == "mteb-comparisons"]
    assert [row[1:4] for row in table.rows] == [
        ("two-stage (e2rank_mini)", "embedding", "+10.00"),
        ("two-stage (base)", "embedding", "-10.00"),
    ]
    panels = draw(rows)["mteb-gains"].axes
    titles = [axes.get_title() for axes in panels]
    assert titles == [f"NFCorpus †\ntwo-stage ({name}) − embedding" for name in ("e2rank_mini", "base")]
    for axes, gain in zip(panels, (10, -10), strict=True):
        heights = [height for area in axes.patches for height in area.get_data().values if height]
        assert heights == pytest.approx([gain] * len(QUERIES))


def test_a_figure_says_what_it_has_no_place_for(tmp_path: Path):
    """Guards against tasks that nobody misses."""
    tasks = {f"t{number}": reranking(f"t{number}") for number in range(7)}
    figure = draw(read_rows([write(tmp_path, **tasks)]))["reranking-gains"]
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 12
    assert "the first 12 of 14" in figure.get_suptitle()


def test_a_stored_p_value_reads_as_the_one_computed():
    """Guards against two values of one comparison in two tables."""
    assert p_value(0.00315) == p_value(0.003149999) == p_value(0.003150001)


def test_characters_that_mean_something_are_escaped(tmp_path: Path):
    """Guards against a name that breaks a table."""
    odd = reranking()
    odd["models"]["model"]["name"] = "a|b & c_100% \\ ^~"
    odd["systems"]["listwise_k6"]["comparison"]["p"] = 1e-6
    rows = read_rows([write(tmp_path, odd=odd)])
    table, _, comparisons, _ = make_tables(rows)
    assert "& $<$0.0001 & 6" in latex(comparisons)
    assert r"| embedding | a\|b & c_100% \ ^~ |" in markdown(table)
    assert r"embedding & a|b \& c\_100\% \textbackslash{} \textasciicircum{}\textasciitilde{} &" in latex(table)


def test_what_is_missing_is_named(tmp_path: Path):
    """Guards against a mean over other tasks than those that were asked for."""
    rows = read_rows([write(tmp_path, dl19=reranking(), dl20=reranking("dl20"))])
    check_complete(rows, ["dl19", "dl20"])
    with pytest.raises(ValueError, match="No results for covid, news; run the evaluation"):
        check_complete(rows, ["dl19", "covid", "news"])
    with pytest.raises(ValueError, match="No results for listwise_k6 of e2rank_mini on DL20 bm25"):
        check_complete(rows[:-1])


def test_tasks_without_search_are_no_gap(tmp_path: Path):
    """Guards against a benchmark of all kinds of tasks that cannot be reported, as MTEB(eng, v2) run in both modes."""
    sts = mteb("embedding", 0.8, "STS12") | {"per_query": {}, "scores": {"cosine_spearman": 0.8}}
    searched = {"one": mteb("embedding", 0.3), "two": mteb("two-stage", 0.4)}
    rows = read_rows([write(tmp_path, sts=sts, **searched)])
    check_complete(rows)
    tables = {table.name: table for table in make_tables(rows)}
    assert tables["mteb-scores"].header == ("system", "model", "NFCorpus †", "STS12 †", "mean")
    assert tables["mteb-scores"].rows == (
        ("embedding", "e2rank_mini", "30.00", "80.00", "55.00"),
        ("two-stage", "e2rank_mini", "40.00", "", ""),
    )
    assert "mteb-metrics" not in tables
    assert draw(rows)["mteb-scores"].axes
    with pytest.raises(ValueError, match="No results for two-stage of e2rank_mini on SciFact"):
        check_complete(read_rows([write(tmp_path, three=mteb("embedding", 0.3, "SciFact"))]))
    with pytest.raises(ValueError, match="No results for embedding of org/other on STS12"):
        check_complete([*rows, replace(rows[0], model="org/other")])


def test_bad_files_are_refused(tmp_path: Path):
    """Guards against a file that is passed over, and against a system that stands in a table twice."""
    with pytest.raises(FileNotFoundError, match="holds no result files"):
        read_rows([tmp_path])
    for name, content in (("broken", "{"), ("other", "{}"), ("list", "[]")):
        (tmp_path / f"{name}.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{name}.json is no result of"):
            read_rows([tmp_path / f"{name}.json"])
    folder = write(tmp_path / "twice", one=reranking(), two=reranking())
    with pytest.raises(ValueError, match="Two files hold first_stage of no model on DL19 bm25"):
        read_rows([folder])


def ink(path: Path) -> float:
    """Share of the pixels of a picture that are not white."""
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    return float((pixels < 0.9).any(axis=-1).mean())


def test_report_is_written_whole(tmp_path: Path, capsys):
    """Guards against empty pictures, and against a figure that is missing without a word."""
    folder = write(tmp_path / "results", dl19=reranking(), dl20=reranking("dl20", shift=0.1))
    assert main([str(folder), "--output-dir", str(tmp_path / "report"), "--tasks", "dl19", "dl20"]) == 0
    printed = capsys.readouterr()
    assert not printed.err
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {Path(line).name for line in printed.out.splitlines()}
    pictures = {f"reranking-{name}.png" for name in FIGURES}
    assert pictures <= written
    for name in pictures:
        assert ink(tmp_path / "report" / name) > 0.02, name


def test_only_some_parts(tmp_path: Path, capsys):
    """Guards against a figure that is added to a report and replaces the rest of it by that of other results."""
    folder = write(tmp_path / "results", dl19=reranking())
    assert main([str(folder), "--output-dir", str(tmp_path / "report"), "--only", "prompt-documents", "metrics"]) == 0
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {
        "reranking-prompt-documents.png",
        *(f"reranking-metrics.{form}" for form in ("md", "tex", "csv")),
    }
    assert not capsys.readouterr().err


def test_figures_without_data_are_left_out_and_said_so(tmp_path: Path, capsys):
    """Guards against a curve of one point."""
    result = reranking()
    del result["systems"]["listwise_k3"]
    assert main([str(write(tmp_path / "results", dl19=result)), "--output-dir", str(tmp_path / "report")]) == 0
    assert "no data for the figures prompt-documents" in capsys.readouterr().err
    assert main([str(tmp_path / "results"), "--tasks", "dl20", "--output-dir", str(tmp_path / "none")]) == 1
    assert "No results for dl20" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_systems_differ_without_colour(tmp_path: Path):
    """Guards against figures that say nothing in black and white."""
    (figure,) = [
        figure for name, figure in draw(read_rows([write(tmp_path, a=reranking())])).items() if "scores" in name
    ]
    hatches = [bar.get_hatch() for bar in figure.axes[0].patches]
    assert len(hatches) == 4 == len(set(hatches))
