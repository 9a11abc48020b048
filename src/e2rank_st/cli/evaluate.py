"""The commands ``e2rank eval``: measure a model, report results, hand them in.

Tables go to standard output; everything else (progress, warnings, errors) goes to standard error. The scripts in
``eval/`` run the same commands.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from e2rank_st.console import Column, log_to_stderr, reported_errors, show

if TYPE_CHECKING:
    from e2rank_st.benchmarks.results import Result
    from e2rank_st.benchmarks.speed import Speeds

__all__ = ["AsJson", "app", "mteb", "report", "rerank", "run_script", "show_speeds", "submit", "table"]

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


def _examples(*commands: str) -> str:
    """Format examples for the end of a help text, where the leading mark keeps the line ends."""
    return "\b\nExamples:\n" + "\n".join(f"  e2rank eval {command}" for command in commands)


def _set_verbosity(verbosity: int) -> int:
    log_to_stderr(verbosity)
    return verbosity


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
    typer.Option("--model", metavar="NAME", help="Folder, Hub id, 'bundled', or 'bundled-base', which it was made of."),
]
DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Local folders in the place of the Hub; marks results local.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="First N queries only, for a try; marks results partial.")
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda, ...; by default the best there is.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Texts in a forward pass.")]
Results = Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="Result files, or folders of them.")]
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, show_default=False, callback=_set_verbosity, help="Say more."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]


def run_script(command: Callable[..., None]) -> None:
    """Run a command as a script, with one line for an error that the user can put right.

    Args:
        command: A function that typer can read.
    """
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    script.command()(command)
    with reported_errors(Path(sys.argv[0]).name):
        script()


def show_speeds(speeds: Speeds, as_json: bool) -> None:
    """Print the figures of a benchmark of speed."""
    if as_json:
        typer.echo(json.dumps(asdict(speeds), indent=2))
        return
    first, *others = speeds.rows[0]
    columns = (Column(first, share=1), *(Column(name, ",") for name in others))
    show(columns, [tuple(row.values()) for row in speeds.rows], title=speeds.title)


def _library(name: str) -> Any:
    """Import a module of the library, by then with calm threads: torch reads the variable when it is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
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


def _numbers(text: str) -> list[int]:
    """The whole numbers between commas."""
    names = _listed(text)
    if odd := [name for name in names if not name.isdecimal()]:
        raise ValueError(f"got {odd[0]!r}; give whole numbers, with commas between them")
    return [int(name) for name in names]


def _quiet_bars() -> None:
    """Show no progress bars of other packages where nobody looks at them."""
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


@app.command(
    epilog=_examples(
        'mteb --benchmark "MTEB(eng, v2)" --mode embedding --output-dir results',
        'mteb --model org/e2rank --benchmark NanoBEIR --benchmark "BRIGHT(v1.1)" --output-dir results',
        "mteb --model bundled-base --tasks NFCorpus,SciFact --data-dir data --output-dir results",
        "mteb --model models/mine --tasks NFCorpus --limit 20 --output-dir smoke",
    )
)
def mteb(
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where results go, and finished ones are found.")],
    model: ModelName = "bundled",
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="Tasks.")] = "",
    benchmark: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A set of tasks; may be given more than once.")
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar="NAME,...", help="By default both, where they differ.")
    ] = "embedding,two-stage",
    name: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="The model's name in results; by default the Hub id.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Commit on the Hub; for a folder, its state's name in results.")
    ] = None,
    data_dir: DataDir = None,
    limit: Limit = None,
    prompt_documents: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Documents in a prompt; by default the model's.")
    ] = None,
    rerank_depth: Annotated[int, typer.Option(min=1, metavar="N", help="Documents of a query to rerank.")] = 100,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results, whatever they are of.")] = False,
    verbose: Verbose = 0,
) -> None:
    """Run tasks of MTEB. Finished ones are kept; the exit status is 1 if a task failed."""
    library = _library("mteb_run")
    with _usage():
        options = library.Options(
            model=model,
            output_dir=output_dir,
            tasks=_listed(tasks),
            benchmarks=benchmark or (),
            modes=_listed(mode),
            name=name,
            revision=revision,
            data_dir=data_dir,
            limit=limit,
            prompt_documents=prompt_documents,
            rerank_depth=rerank_depth,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
            show_progress_bar=sys.stderr.isatty(),
        )
    _quiet_bars()
    outcomes = []
    for outcome in library.run(options):
        outcomes.append(outcome)
        said = outcome.error or f"{outcome.score:.2f}"
        typer.echo(f"{outcome.task} {outcome.mode}: {outcome.state}: {said}", err=True)
    show(MTEB_COLUMNS, [outcome[: len(MTEB_COLUMNS)] for outcome in outcomes], title=options.name or options.model)
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
    )
)
def rerank(
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="Tasks; dl, beir, bright or dev are sets.")] = "",
    first_stage: Annotated[str, typer.Option(metavar="NAME", help="Whose candidates.")] = "bm25",
    data_dir: DataDir = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="First-stage results with text, JSON lines.")
    ] = None,
    qrels: Annotated[Path | None, typer.Option(metavar="FILE", help="Their judgements in TREC's form.")] = None,
    beir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Corpus, queries and judgements in BEIR's layout.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose judgements there; by default the task's, else test.")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="FILE", help="TREC run over --beir.")] = None,
    own_first_stage: Annotated[
        bool, typer.Option("--own-first-stage", help="Each model retrieves its own candidates.")
    ] = False,
    top_n: Annotated[int, typer.Option(min=1, metavar="N", help="Candidates a query.")] = 100,
    limit: Limit = None,
    judged_only: Annotated[bool, typer.Option("--judged-only", help="Leave out queries without judgements.")] = False,
    model: ModelName = "bundled",
    baseline: Annotated[str | None, typer.Option(metavar="NAME", help="A second model, side by side.")] = None,
    cross_encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="A Sentence-Transformers cross-encoder, side by side.")
    ] = None,
    device: Device = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")] = "float32",
    batch_size: BatchSize = 32,
    systems: Annotated[
        str, typer.Option(metavar="NAME,...", help="Systems of each model.")
    ] = "embedding,rocchio,listwise",
    num_prompt_documents: Annotated[
        str, typer.Option("--num-prompt-documents", "-k", metavar="K,...", help="A listwise system for each K.")
    ] = "",
    candidate_order: Annotated[
        Literal["given", "similarity"] | None, typer.Option(help="Of the prompt; by default the model's.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, metavar="N", help="Listwise passes.")] = 1,
    query_weight: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="W", help="Share of the query's own vector in listwise.")
    ] = None,
    rocchio_documents: Annotated[int, typer.Option(min=1, metavar="N", help="Documents of Rocchio feedback.")] = 3,
    rocchio_weight: Annotated[float, typer.Option(metavar="W", help="Weight of Rocchio feedback.")] = 0.3,
    instructions: Annotated[
        Literal["task", "model"], typer.Option(help="Whose; published scores were taken with the model's.")
    ] = "task",
    compare_with: Annotated[
        str | None, typer.Option(metavar="SYSTEM", help="By default the baseline's embedding, else the model's.")
    ] = None,
    embedding_queries: Annotated[
        int, typer.Option(min=0, metavar="N", help="Queries to time without stored vectors.")
    ] = 10,
    seed: Annotated[int, typer.Option(metavar="N", help="Of bootstrap and randomisation test.")] = 0,
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where results go.")] = Path("results"),
    runs: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a TREC run of each system there.")] = None,
    verbose: Verbose = 0,
) -> None:
    """Rerank a first stage's candidates by several systems side by side. The exit status is 1 if a task failed."""
    library = _library("reranking")
    with _usage():
        options = library.Options(
            tasks=_listed(tasks),
            first_stage=first_stage,
            data_dir=data_dir,
            results=results,
            qrels=qrels,
            beir=beir,
            split=split,
            run=run,
            own_first_stage=own_first_stage,
            top_n=top_n,
            limit=limit,
            judged_only=judged_only,
            model=model,
            baseline=baseline,
            cross_encoder=cross_encoder,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            systems=_listed(systems),
            num_prompt_documents=_numbers(num_prompt_documents),
            candidate_order=candidate_order,
            passes=passes,
            query_weight=query_weight,
            rocchio_documents=rocchio_documents,
            rocchio_weight=rocchio_weight,
            instructions=instructions,
            compare_with=compare_with,
            embedding_queries=embedding_queries,
            seed=seed,
            output_dir=output_dir,
            runs_dir=runs,
            show_progress_bar=sys.stderr.isatty(),
        )
    _quiet_bars()
    failed = 0
    for outcome in library.run(options):
        if isinstance(outcome, library.Failure):
            failed += 1
            typer.echo(f"{outcome.task}: error: {outcome.error}", err=True)
        else:
            _show_result(outcome)
    if failed:
        typer.echo(f"{failed} tasks failed.", err=True)
        raise typer.Exit(1)


def _show_result(result: Result) -> None:
    """Show a table of the systems."""
    marks = [mark for mark in ("local", "partial") if getattr(result, mark)]
    title = f"{result.title}, {result.first_stage} top {result.candidates}, {result.queries} queries"
    title += f", compared with {result.settings['compare_with']}"
    rows = []
    for name, system in result.systems.items():
        low, high = (f"{100 * bound:.1f}" for bound in system.interval or (0, 0))
        found, tokens = system.comparison, system.tokens
        stored, fresh = (system.latency[kind] for kind in ("stored", "fresh"))
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
        "report results --tasks dl19,dl20,covid --only scores,comparisons",
    )
)
def report(
    results: Results,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write tables (.md, .csv) and figures there, and print nothing.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the figures there; by default in --output-dir.")
    ] = None,
    figure_format: Annotated[str, typer.Option(metavar="NAME,...", help="png, pdf or svg.")] = "png",
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="Tasks that have to be there.")] = "",
    only: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="scores, metrics, comparisons, latency, prompt-documents, gains."),
    ] = "",
) -> None:
    """Make tables, in Markdown, and figures of all results."""
    library, reader = _library("report"), _library("results")
    parts, formats = _listed(only) or library.PARTS, _listed(figure_format)
    with _usage():
        for found, allowed in ((parts, library.PARTS), (formats, ("png", "pdf", "svg"))):
            if unknown := [part for part in found if part not in allowed]:
                raise ValueError(f"got {unknown[0]!r}; give some of {', '.join(allowed)}")
    entries = reader.read_entries(results)
    reader.check_complete(entries, _listed(tasks))
    tables = library.make_tables(entries, parts)
    if output_dir is None:
        typer.echo("\n".join(made.markdown for made in tables), nl=False)
    else:
        typer.echo("\n".join(map(str, library.write_tables(tables, output_dir))), err=True)
    if (folder := figures or output_dir) is not None:
        written = library.write_figures(entries, folder, formats, parts)
        typer.echo("\n".join(map(str, written)) or "no data for these figures", err=True)


@app.command(epilog=_examples("table eval/results", "table eval/results --readme README.md --docs docs/evaluation.md"))
def table(
    results: Results,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put the short table between the marks of this file.")
    ] = None,
    docs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put the full tables between the marks of this file.")
    ] = None,
) -> None:
    """Print the tables that compare a model with its baseline, and put them into README and docs."""
    library = _library("summary")
    entries = _library("results").read_entries(results)
    full = library.summary(entries)
    if readme is not None:
        library.put_into(readme, library.short_summary(entries))
    if docs is not None:
        library.put_into(docs, full)
    typer.echo(full, nl=False)


@app.command(
    epilog=_examples(
        "submit results --model models/mine --name org/mine --revision COMMIT --release-date 2026-01-31 "
        "--benchmark NanoBEIR"
    )
)
def submit(
    results: Results,
    model: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the trained adapter, with its training.json.")],
    name: Annotated[str, typer.Option(metavar="ORG/NAME", help="Hub id of the model, as results have it.")],
    revision: Annotated[str, typer.Option(metavar="COMMIT", help="The commit there that was evaluated.")],
    release_date: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="When that was published.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A set of tasks that has to be complete; may be given more than once."),
    ] = None,
    training_code: Annotated[str | None, typer.Option(metavar="URL", help="Where the training code is public.")] = None,
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where the submission goes.")] = Path("submission"),
) -> None:
    """Check results of MTEB and build a submission to its leaderboard."""
    library = _library("submission")
    options = library.Options(results, model, name, revision, release_date, benchmark or (), training_code, output_dir)
    submitted = library.submit(options)
    typer.echo(f"{output_dir}: {len(submitted)} results of {name} at {revision}, and {library.MODULE}")
    typer.echo(NEXT_STEPS.format(module=output_dir / library.MODULE, results=output_dir / "results"))
