"""The commands ``e2rank eval``: measure a model, report results, hand them in.

Tables go to standard output; everything else (progress, warnings, errors) goes to standard error. The scripts in
``eval/`` run the same commands.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from e2rank_st.cli.options import BatchSize, Device, Dtype, Verbose, examples
from e2rank_st.cli.process import settle
from e2rank_st.console import Column, printable, reported_errors, show

if TYPE_CHECKING:
    from e2rank_st.benchmarks.results import Result

__all__ = ["app", "mteb", "relevance", "report", "rerank", "run_script", "submit", "table"]

MTEB_COLUMNS = (
    Column("task", share=1),
    Column("mode"),
    Column("metric"),
    Column("score", ".2f", style="green"),
    Column("seconds", ".0f"),
    Column("state"),
)
RERANK_COLUMNS = (  # of texts, since some systems have no value in some of them
    Column("system", share=1),
    Column("nDCG@10", ">", style="green"),
    Column("95 %", ">"),
    Column("difference", ">"),
    Column("p", ">"),
    Column("wins/ties/losses", ">"),
    Column("ms", ">"),
    Column("p95", ">"),
    Column("ms, no store", ">"),
    Column("tokens", ">"),
)
NEXT_STEPS = """
Next, open two pull requests:
1. {module} goes to mteb/models/model_implementations of https://github.com/embeddings-benchmark/mteb.
2. {results} goes to a fork of https://github.com/embeddings-benchmark/results."""


_examples = partial(examples, program="e2rank eval")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help and usage errors: a line stays a line
    help="Measure models on MTEB and on reranking, and report the results.",
    epilog=_examples(
        "rerank --tasks dl19,dl20",
        "mteb --benchmark NanoBEIR --model org/name --output-dir results",
        "report results",
    ),
)

ModelName = Annotated[
    str,
    Option("--model", metavar="NAME", help="Folder, Hub id, 'bundled', or 'bundled-base' for its base."),
]
DataDir = Annotated[
    Path | None,
    Option(metavar="DIR", exists=True, file_okay=False, help="Local folders, not the Hub; marks results local."),
]
Limit = Annotated[
    int | None, Option(min=1, metavar="N", help="First N queries only, for a try; marks results partial.")
]
Published = Annotated[
    bool,
    Option(
        "--published",
        help="The paper's setting: the first 1,024 words of a document, the model's instruction, K = 20, the order "
        "given, no limit of tokens, judged queries only.",
    ),
]
Vectors = Annotated[
    Path | None, Option(metavar="DIR", help="Keep vectors of documents here, and take those that are here.")
]
Results = Annotated[list[Path], Argument(metavar="RESULTS...", help="Result files, or folders of them.")]


def run_script(command: Callable[..., None]) -> None:
    """Run a command as a script, with one line for an error that the user can put right.

    Args:
        command: A function that typer can read.
    """
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    script.command()(command)
    settle()
    with reported_errors(Path(sys.argv[0]).name):
        script()


def _library(name: str) -> Any:
    """Import a module of the library."""
    try:
        return importlib.import_module(f"e2rank_st.benchmarks.{name}")
    except ModuleNotFoundError as error:
        advice = "pip install 'e2rank-st[eval]'; MTEB needs Python 3.11 or newer."
        raise ImportError(f"Evaluation needs the package {error.name}: {advice}") from error


@contextmanager
def _usage() -> Iterator[None]:
    """Tell of a bad option as typer does."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _listed(text: str) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _chosen(text: str, allowed: Sequence[str]) -> list[str]:
    """The names between commas, each one of those allowed, and once."""
    names = list(dict.fromkeys(_listed(text)))
    if unknown := [name for name in names or [""] if name not in allowed]:
        raise ValueError(f"got {unknown[0]!r}; give some of {', '.join(allowed)}")
    return names


def _counts(text: str) -> list[int]:
    """The numbers between commas."""
    if odd := [name for name in _listed(text) if not name.isdecimal() or int(name) < 1]:
        raise ValueError(f"got {odd[0]!r}; give whole numbers from 1, with commas between them")
    return list(map(int, _listed(text)))


@app.command(
    epilog=_examples(
        'mteb --benchmark "MTEB(eng, v2)" --mode embedding --output-dir results',
        'mteb --model org/e2rank --benchmark NanoBEIR --benchmark "BRIGHT(v1.1)" --output-dir results',
        "mteb --model bundled-base --tasks NFCorpus,SciFact --data-dir data --output-dir results",
        "mteb --model models/mine --tasks NFCorpus --limit 20 --output-dir smoke",
    )
)
def mteb(
    tasks: Annotated[str, Option(metavar="NAME,...", help="Tasks.")] = "",
    benchmark: Annotated[list[str] | None, Option(metavar="NAME", help="Set of tasks; may be given again.")] = None,
    mode: Annotated[str, Option(metavar="NAME,...", help="Both, where they differ.")] = "embedding,two-stage",
    name: Annotated[str | None, Option(metavar="ORG/NAME", help="In results; by default the Hub id.")] = None,
    revision: Annotated[str | None, Option(metavar="COMMIT", help="On the Hub; else the state's name.")] = None,
    model: ModelName = "bundled",
    data_dir: DataDir = None,
    limit: Limit = None,
    prompt_documents: Annotated[int | None, Option(min=1, metavar="K", help="By default the model's.")] = None,
    rerank_depth: Annotated[int, Option(min=1, metavar="N", help="Documents of a query to rerank.")] = 100,
    first_stage_weight: Annotated[
        float | None, Option(min=0, max=1, metavar="W", help="Share of retrieval in two-stage; by default the model's.")
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = "saved",
    vectors: Vectors = None,
    output_dir: Annotated[Path, Option(metavar="DIR", help="Where results go and are kept.")] = Path("results"),
    overwrite: Annotated[bool, Option("--overwrite", help="Replace results, whatever they are of.")] = False,
    verbose: Verbose = 0,
) -> None:
    """Run tasks of MTEB. Finished ones are kept; the exit status is 1 if a task failed."""
    given = dict(locals())  # the options by name, as the library has them
    library = _library("mteb_run")
    with _usage():
        del given["benchmark"], given["mode"]
        lists = {"tasks": _listed(tasks), "benchmarks": benchmark or (), "modes": _chosen(mode, library.MODES)}
        options = _options(library, given | lists)
    outcomes = []
    for outcome in library.run(options):
        outcomes.append(outcome)
        said = outcome.error or f"{outcome.score:.2f}"
        typer.echo(printable(f"{outcome.task} {outcome.mode}: {outcome.state}: {said}"), err=True)
    show(MTEB_COLUMNS, [outcome[: len(MTEB_COLUMNS)] for outcome in outcomes], title=name or model)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "rerank --tasks dl19,dl20",
        "rerank --tasks dl21 --first-stage splade --data-dir data --output-dir results",
        "rerank --tasks scifact,dev --own-first-stage --data-dir data --baseline bundled-base",
        "rerank --results hits.jsonl.gz --qrels qrels.txt --model my-model --baseline bundled-base",
        "rerank --beir my-corpus --run bm25.trec --cross-encoder cross-encoder/ms-marco-MiniLM-L6-v2",
        "rerank --tasks dl21 --data-dir data --num-prompt-documents 1,3,6,10,20",
        "rerank --tasks dl21 --first-stage splade --systems listwise,fused --first-stage-weight 0.5",
        "rerank --published --tasks dl19,dl20,beir --model Alibaba-NLP/E2Rank-0.6B",
    )
)
def rerank(
    tasks: Annotated[str, Option(metavar="NAME,...", help="Tasks; dl, beir, bright or dev are sets.")] = "",
    first_stage: Annotated[str, Option(metavar="NAME", help="Whose candidates.")] = "bm25",
    data_dir: DataDir = None,
    results: Annotated[Path | None, Option(metavar="FILE", help="First-stage results with text, JSON lines.")] = None,
    qrels: Annotated[Path | None, Option(metavar="FILE", help="Their judgements in TREC's form.")] = None,
    beir: Annotated[Path | None, Option(metavar="DIR", help="Texts and judgements in BEIR's layout.")] = None,
    split: Annotated[str | None, Option(metavar="NAME", help="Whose judgements there; by default the task's.")] = None,
    run: Annotated[Path | None, Option(metavar="FILE", help="TREC run over --beir.")] = None,
    own_first_stage: Annotated[bool, Option("--own-first-stage", help="Each model retrieves its candidates.")] = False,
    top_n: Annotated[int, Option(min=1, metavar="N", help="Candidates a query.")] = 100,
    limit: Limit = None,
    judged_only: Annotated[bool, Option("--judged-only", help="Leave out queries without judgements.")] = False,
    model: ModelName = "bundled",
    baseline: Annotated[str | None, Option(metavar="NAME", help="A second model, side by side.")] = None,
    cross_encoder: Annotated[str | None, Option(metavar="NAME", help="A cross-encoder, side by side.")] = None,
    device: Device = None,
    dtype: Dtype = "saved",
    batch_size: BatchSize = 32,
    systems: Annotated[str, Option(metavar="NAME,...", help="Of each model; or fused.")] = "embedding,rocchio,listwise",
    num_prompt_documents: Annotated[
        str, Option("--num-prompt-documents", "-k", metavar="K,...", help="A listwise system for each K.")
    ] = "",
    candidate_order: Annotated[
        Literal["given", "similarity"] | None, Option(help="Documents of the prompt; by default as the model has it.")
    ] = None,
    query_weight: Annotated[
        float | None, Option(min=0, max=1, metavar="W", help="The query's share in listwise; by default the model's.")
    ] = None,
    first_stage_weight: Annotated[
        float | None, Option(min=0, max=1, metavar="W", help="The first stage's share in the system fused.")
    ] = None,
    instructions: Annotated[
        Literal["task", "model"] | None, Option(help="The task's, which is the default, or the model's own.")
    ] = None,
    published: Published = False,
    embedding_queries: Annotated[int, Option(min=0, metavar="N", help="Queries timed without stored vectors.")] = 10,
    vectors: Vectors = None,
    output_dir: Annotated[Path, Option(metavar="DIR", help="Where results go.")] = Path("results"),
    runs: Annotated[Path | None, Option(metavar="DIR", help="Write a TREC run of each system there.")] = None,
    verbose: Verbose = 0,
) -> None:
    """Rerank a first stage's candidates by several systems side by side. The exit status is 1 if a task failed."""
    given = dict(locals())  # the options by name, as the library has them
    library = _library("reranking")
    with _usage():
        counts, names = _counts(num_prompt_documents), _chosen(systems, library.VECTOR_SYSTEMS)
        lists = {"tasks": _listed(tasks), "systems": names, "num_prompt_documents": counts}
        options = _options(library, {**given, **lists, "runs_dir": runs})
    failed = []
    for outcome in library.run(options):
        failed.append(isinstance(outcome, library.Failure))
        if failed[-1]:
            typer.echo(printable(f"{outcome.task}: error: {outcome.error}"), err=True)
        else:
            _show_result(outcome)
            typer.echo(f"wrote {library.result_path(options, outcome)}", err=True)
    if any(failed):
        typer.echo(f"{sum(failed)} of {len(failed)} tasks failed.", err=True)
        raise typer.Exit(1)


def _options(library: Any, given: dict[str, Any]) -> Any:
    """Options of the library, and no progress bars of other packages where nobody looks at them."""
    given = {name: value for name, value in given.items() if name not in ("runs", "verbose")}
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        if "datasets" in sys.modules:  # as MTEB loads them
            sys.modules["datasets"].disable_progress_bars()
    return library.Options(**given, show_progress_bar=on_terminal)


def _show_result(result: Result) -> None:
    """Show a table of the systems."""
    marks = [mark for mark in ("local", "partial") if getattr(result, mark)]
    title = f"{result.title}, {result.first_stage} top {result.candidates}, {result.queries} queries"
    title += f", compared with {result.settings['compare_with']}"
    rows = []
    for name, system in result.systems.items():
        low, high = (f"{100 * bound:.1f}" for bound in system.interval or (0, 0))
        found, tokens, stored, fresh = system.comparison, system.tokens, *map(system.latency.get, ("stored", "fresh"))
        test = [f"{100 * found['difference']:+.2f}", f"{found['p']:.4f}"] if found else ["", ""]
        counts = f"{found['wins']}/{found['ties']}/{found['losses']}" if found else ""
        times = [f"{stored['median']:.1f}", f"{stored['p95']:.1f}"] if stored else ["", ""]
        cells = [*test, counts, *times, f"{fresh['median']:.0f}" if fresh else ""]
        score = f"{100 * system.scores[result.main_metric]:.2f}"
        rows.append((name, score, f"{low} to {high}", *cells, f"{tokens['median']:.0f}" if tokens else ""))
    show(RERANK_COLUMNS, rows, title=" · ".join([title, *marks]))


@app.command(
    epilog=_examples(
        "report results",
        "report results --output-dir report --figure-format png,pdf",
        "report results --only scores,comparisons",
    )
)
def report(
    results: Results,
    output_dir: Annotated[
        Path | None, Option(metavar="DIR", help="Write tables (.md, .csv) and figures there, and print nothing.")
    ] = None,
    figures: Annotated[
        Path | None, Option(metavar="DIR", help="Draw the figures there; by default in --output-dir.")
    ] = None,
    figure_format: Annotated[str, Option(metavar="NAME,...", help="png, pdf or svg.")] = "png",
    only: Annotated[
        str,
        Option(metavar="NAME,...", help="scores, metrics, comparisons, latency, prompt-documents, gains."),
    ] = "",
) -> None:
    """Make tables, in Markdown, and figures of all results."""
    library = _library("report")
    with _usage():
        parts = _chosen(only, library.PARTS) if only else library.PARTS
        formats = _chosen(figure_format, ("png", "pdf", "svg"))
    entries = _library("results").read_entries(results)
    tables = library.make_tables(entries, parts)
    if output_dir is None:
        typer.echo("\n".join(made.markdown for made in tables), nl=False)
    else:
        typer.echo("\n".join(map(str, library.write_tables(tables, output_dir))), err=True)
    if (folder := figures or output_dir) is not None:
        written = library.write_figures(entries, folder, formats, parts)
        typer.echo("\n".join(map(str, written)) or "no data for these figures", err=True)


@app.command(
    epilog=_examples("table results", "table results/mine results/other --readme README.md --docs docs/evaluation.md")
)
def table(
    results: Annotated[list[Path], Argument(metavar="RESULTS...", help="A folder of results for each model.")],
    readme: Annotated[
        Path | None, Option(metavar="FILE", help="Put the short table between the marks of this file.")
    ] = None,
    docs: Annotated[
        Path | None, Option(metavar="FILE", help="Put the full tables between the marks of this file.")
    ] = None,
) -> None:
    """Print what listwise reranking gains, for the model of each folder, and put the tables into README and docs."""
    library = _library("summary")
    models = [_library("results").read_entries([path]) for path in results]
    full = library.summary(models)
    if readme is not None:
        library.put_into(readme, library.short_summary(models))
    if docs is not None:
        library.put_into(docs, full)
    typer.echo(full, nl=False)


@app.command(epilog=_examples("relevance --tasks nfcorpus-dev,squad-dev --data-dir data --output-dir relevance"))
def relevance(
    tasks: Annotated[str, Option(metavar="NAME,...", help="Tasks with a corpus, at least two.")],
    data_dir: Annotated[Path, Option(metavar="DIR", exists=True, file_okay=False, help="Their folders.")],
    model: ModelName = "bundled-base",
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = "saved",
    output_dir: Annotated[Path, Option(metavar="DIR", help="Where similarities, tables and figure go.")] = Path(
        "relevance"
    ),
    docs: Annotated[Path | None, Option(metavar="FILE", help="Put the tables between the marks of this file.")] = None,
    verbose: Verbose = 0,
) -> None:
    """Measure how well a threshold on similarity tells whether a corpus holds anything relevant to a query."""
    given = dict(locals())  # the options by name, as the library has them
    library = _library("relevance")
    with _usage():
        del given["docs"]
        options = _options(library, given | {"tasks": _listed(tasks)})
    found = library.measure(options)
    if docs is not None:
        _library("summary").put_into(docs, library.tables(found), "relevance")
    typer.echo(library.tables(found), nl=False)
    typer.echo("\n".join(map(str, library.write(options, found))), err=True)


@app.command(
    epilog=_examples(
        "submit results --model models/mine --name org/mine --revision COMMIT --release-date 2026-01-31 "
        "--benchmark NanoBEIR"
    )
)
def submit(
    results: Results,
    model: Annotated[Path, Option(metavar="DIR", help="Folder of the trained adapter, with its training.json.")],
    name: Annotated[str, Option(metavar="ORG/NAME", help="Hub id of the model, as results have it.")],
    revision: Annotated[str, Option(metavar="COMMIT", help="The commit there that was evaluated.")],
    release_date: Annotated[str, Option(metavar="YYYY-MM-DD", help="When that was published.")],
    benchmark: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="A set of tasks that has to be complete; may be given more than once."),
    ] = None,
    training_code: Annotated[str | None, Option(metavar="URL", help="Where the training code is public.")] = None,
    output_dir: Annotated[Path, Option(metavar="DIR", help="Where the submission goes.")] = Path("submission"),
) -> None:
    """Check results of MTEB and build a submission to its leaderboard."""
    library = _library("submission")
    told = {"release_date": release_date, "training_code": training_code}
    try:
        submitted = library.submit(
            results, model, name, revision, benchmarks=benchmark or (), output_dir=output_dir, **told
        )
    except library.Refused as error:  # a line for each reason
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{output_dir}: {len(submitted)} results of {name} at {revision}, and {library.MODULE}")
    typer.echo(NEXT_STEPS.format(module=output_dir / library.MODULE, results=output_dir / "results"))
