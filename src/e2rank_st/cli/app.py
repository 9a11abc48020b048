"""The command ``e2rank``: search the standard library's docstrings, rerank a file, embed a file.

Results go to standard output: a table on a terminal, tab-separated lines in a pipe, JSON lines on request. Everything
else (progress, times, warnings, errors) goes to standard error. Only the commands that need the model and torch import
them, so ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from e2rank_st import __version__
from e2rank_st.cli import bench, evaluate, search, serve
from e2rank_st.cli.models import BUNDLED, IndexModel, ModelName, load_encoder, name_of_maker, step
from e2rank_st.cli.options import BatchSize, Device, Dtype, Figure, Verbose, examples
from e2rank_st.cli.process import settle
from e2rank_st.console import Column, json_line, log_to_stderr, reported_errors, show
from e2rank_st.data.documents import Format, read_documents
from e2rank_st.data.files import DataError, number_field, text_field
from e2rank_st.storage import replacing

__all__ = ["app"]

NUM_CANDIDATES = 100
HIT_COLUMNS = (
    Column("rank", "d", style="bold"),
    Column("score", ".4f", style="green"),
    Column("before", "d"),
    Column("score", ".4f"),
    Column("name", share=1, style="cyan"),
    Column("first line", share=1),
)
RERANK_COLUMNS = (
    Column("rank", "d", style="bold"),
    Column("score", ".4f", style="green"),
    Column("id", "d"),
    Column("text", share=1),
)


class _Commands(TyperGroup):
    """Ends a command after a user's mistake, with one line on stderr instead of a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        settle()
        with reported_errors("e2rank"):
            return super().main(*args, **kwargs)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"e2rank {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help and usage errors: a line stays a line
    epilog=examples(
        "demo",
        "index notes/ --to notes.lance",
        'search notes.lance "how long do fleas live"',
        'rerank "how long do fleas live" passages.txt',
        "embed passages.txt --output vectors.npy",
    ),
)

app.add_typer(evaluate.app, name="eval")
app.command(epilog=search.INDEX_EXAMPLES)(search.index)
app.command(epilog=search.SEARCH_EXAMPLES)(search.search)
app.command(epilog=serve.SERVE_EXAMPLES)(serve.serve)
app.command(epilog=bench.BENCH_EXAMPLES)(bench.bench)

Source = Annotated[
    str, typer.Argument(metavar="FILE", help="One document a line, or JSON lines or CSV with 'text'; - is stdin.")
]
FileFormat = Annotated[Format, typer.Option("--format", help="Form of FILE; auto looks at its name and first line.")]


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Retrieve and rerank with one embedding model (E2Rank)."""


@app.command(
    epilog=examples(
        "demo", 'demo "compress a file with gzip" --top-k 3', "demo --web", "demo --web --index notes.lance"
    )
)
def demo(
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="Default: three built-in queries.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, metavar="N", help="Results for each query.")] = 10,
    web: Annotated[bool, typer.Option("--web", help="Show a page in the browser, on this machine only.")] = False,
    index: Annotated[str | None, typer.Option(metavar="FOLDER", help="With --web: an index to search instead.")] = None,
    cache: Annotated[bool, typer.Option(help="Keep the index in the user's cache folder.")] = True,
    model: IndexModel = None,
    device: Device = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = 32,
    verbose: Verbose = 0,
) -> None:
    """Search the docstrings of Python's standard library: retrieve 100, and rerank them with their stored vectors.

    A page (--web) also searches texts that you paste, and shows what reranking changed and what the prompt held.
    """
    from e2rank_st.cli.demo import open_index, show_page
    from e2rank_st.data.docstrings import QUERIES

    if index is not None and not web:
        raise typer.BadParameter("got --index without --web; 'e2rank search' searches an index")
    for query in queries or ():
        text_field({"QUERY": query}, "QUERY")
    if web:
        import e2rank_st.serving.page  # noqa: F401  # a missing extra is told before a model is loaded
    encoder = load_encoder(model or (name_of_maker(index) if index else None) or BUNDLED, device, dtype, tell=True)
    found = open_index(encoder, index, keep=cache, batch_size=batch_size)
    if web:
        show_page(found, index, queries or (() if index else QUERIES), top_k)
        return
    for query in queries or QUERIES:
        with step(f"retrieving {NUM_CANDIDATES} texts, and reranking them", spin=False):
            hits = found.search(query, top_k, NUM_CANDIDATES)
        rows = (
            (rank, hit["score"], hit["retrieval_rank"], hit["retrieval_score"], hit["id"], hit["text"].splitlines()[0])
            for rank, hit in enumerate(hits, 1)
        )
        show(HIT_COLUMNS, rows, title=query)


@app.command(
    epilog=examples(
        'rerank "how long do fleas live" passages.txt',
        'rerank "how long do fleas live" passages.txt --embeddings vectors.npy',
        'rerank "how long do fleas live" hits.jsonl --json --top-k 5 --first-stage-weight 0.5',
    )
)
def rerank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The query.")],
    source: Source = "-",
    top_k: Annotated[int | None, typer.Option(min=0, metavar="N", help="Results to show; by default all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON lines, with all fields of the input.")] = False,
    file_format: FileFormat = "auto",
    embeddings: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Vectors of the documents, from 'e2rank embed'.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(metavar="TEXT", help="Task instruction of the prompt.")] = None,
    num_prompt_documents: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="Documents in the prompt.")
    ] = None,
    candidate_order: Annotated[
        Literal["given", "similarity"] | None,
        typer.Option(metavar="ORDER", help="given: the prompt holds the first documents; similarity: the nearest."),
    ] = None,
    first_stage_weight: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="W", help="Share of the field 'score' in the final score.")
    ] = None,
    min_similarity: Annotated[
        float | None, typer.Option(min=-1, max=1, metavar="X", help="Leave out documents less similar to the query.")
    ] = None,
    model: ModelName = BUNDLED,
    device: Device = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = 32,
    verbose: Verbose = 0,
) -> None:
    """Sort documents by how well they answer a query. A score is comparable within one call only."""
    text_field({"QUERY": query}, "QUERY")
    records = _read(source, file_format)
    vectors = _read_vectors(embeddings) if embeddings else None
    encoder = load_encoder(model, device, dtype)
    configured = encoder.listwise.first_stage_weight and all("score" in record for record in records)
    ranking = encoder.rerank(
        query,
        [record["text"] for record in records],
        top_k=top_k,
        document_embeddings=vectors,
        instruction=instruction,
        num_prompt_documents=num_prompt_documents,
        candidate_order=candidate_order,
        first_stage_scores=_scores(records) if first_stage_weight or configured else None,
        first_stage_weight=first_stage_weight,
        min_similarity=min_similarity,
        batch_size=batch_size,
        show_progress_bar=sys.stderr.isatty(),
    )
    if as_json:
        for rank, hit in enumerate(ranking, 1):
            _write_json({"rank": rank, **hit}, records[hit["corpus_id"]])
    else:
        hits = [(rank, hit["score"], hit["corpus_id"]) for rank, hit in enumerate(ranking, 1)]
        show(RERANK_COLUMNS, [(*hit, records[hit[-1]]["text"]) for hit in hits])


@app.command(
    epilog=examples(
        "embed passages.txt --output vectors.npy",
        'echo "how long do fleas live" | e2rank embed --task query',
    )
)
def embed(
    source: Source = "-",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.npy", help="Write a float32 matrix instead.")
    ] = None,
    task: Annotated[Literal["query", "document"], typer.Option(help="Embed as queries or as documents.")] = "document",
    file_format: FileFormat = "auto",
    model: ModelName = BUNDLED,
    device: Device = None,
    dtype: Dtype = "saved",
    batch_size: BatchSize = 32,
    verbose: Verbose = 0,
) -> None:
    """Embed texts. The result is JSON lines with the fields of the input and 'embedding'."""
    import numpy as np

    records = _read(source, file_format)
    encoder = load_encoder(model, device, dtype)
    encode = encoder.encode_query if task == "query" else encoder.encode_document
    texts = [record["text"] for record in records]
    vectors = np.asarray(encode(texts, batch_size=batch_size, show_progress_bar=sys.stderr.isatty()), dtype=np.float32)
    if output:
        with replacing(output) as fresh, fresh.open("wb") as file:
            np.save(file, vectors)
        typer.echo(f"wrote {len(vectors)} vectors of dimension {vectors.shape[1]} to {output}", err=True)
        return
    for record, vector in zip(records, vectors, strict=True):
        _write_json({"embedding": vector.tolist()}, record)


@app.command(
    epilog=examples(
        "tune --results hits.jsonl.gz --qrels qrels.txt",
        "tune --run bm25.trec --corpus corpus.jsonl --queries queries.jsonl --qrels qrels.txt --figure tuned.png",
        "tune --index notes --queries queries.jsonl --qrels qrels.txt --model models/mine --write",
    )
)
def tune(
    qrels: Annotated[Path, typer.Option(metavar="FILE", help="Judgements in TREC's form, of 30 queries or more.")],
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="First-stage results with text, JSON lines.")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="FILE", help="TREC run over --corpus and --queries.")] = None,
    index: Annotated[Path | None, typer.Option(metavar="DIR", help="Index that the model itself searches.")] = None,
    queries: Annotated[Path | None, typer.Option(metavar="FILE", help="Queries with '_id' and 'text'.")] = None,
    corpus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Documents of --run, with '_id' and 'text'.")
    ] = None,
    top_n: Annotated[int, typer.Option(min=2, metavar="N", help="Candidates a query.")] = 100,
    model: ModelName = BUNDLED,
    device: Device = None,
    dtype: Dtype = "saved",
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the folds and the tests.")] = 0,
    write: Annotated[bool, typer.Option("--write", help="Write the settings into the folder --model.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all scores as JSON.")
    ] = None,
    figure: Figure = None,
    verbose: Verbose = 0,
) -> None:
    """Is reranking worth it on your queries? Tries orders, K and weights, and judges them on held-out queries."""
    from e2rank_st.cli import tune as work

    inputs = work.Inputs(qrels, results, run, index, queries, corpus)
    try:
        inputs.check()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if write and not Path(model).is_dir():
        raise typer.BadParameter(f"got --write with the model {model!r}; it needs a folder of your own in --model")
    encoder = load_encoder(model, device, dtype)
    with step("trying settings", spin=False):
        tuning = work.decide(
            encoder, inputs, top_n=top_n, seed=seed, batch_size=batch_size, show_progress_bar=sys.stderr.isatty()
        )
    work.report(tuning, write=Path(model) if write else None, output=output, figure=figure)


# The training script reads its own settings: all settings of the trainer, as flags or from a file.
@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context) -> None:
    """Train a model on slates. Settings come from a YAML file and flags; 'e2rank train --help' lists them."""
    from e2rank_st.training.run import main as run_training

    log_to_stderr(1)
    run_training(context.args)


def _read(source: str, form: Format) -> list[dict[str, Any]]:
    if source == "-" and sys.stdin is not None and sys.stdin.isatty():
        typer.echo("reading documents from the keyboard, one a line; Ctrl-D ends them", err=True)
    return read_documents(source, form)


def _scores(records: list[dict[str, Any]]) -> list[float]:
    """The first stage's scores of documents, in their field 'score'."""
    scores = []
    for number, record in enumerate(records, 1):
        try:
            scores.append(number_field(record, "score"))
        except DataError as error:
            raise DataError(error.field, error.problem, error.detail, f"document {number}") from error
    return scores


def _read_vectors(path: Path) -> Any:
    """Read a matrix that ``embed --output`` wrote. A pickle is refused, because it could run code."""
    from tokenize import TokenError

    import numpy as np

    try:
        # A map compares the size that the header claims with the file's, before memory is taken.
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, TypeError, OverflowError, TokenError) as error:  # all of them from a header that is not one
        raise ValueError(
            f"{path} is not a matrix of numbers in NumPy's format; make one with e2rank embed --output."
        ) from error


def _write_json(results: dict[str, Any], record: dict[str, Any]) -> None:
    """Write one JSON line, results first. A field of the input with the same name is kept as ``input_...``."""
    fields = {**results, **{name: value for name, value in record.items() if name not in results}}
    for name in record.keys() & results.keys():
        kept = f"input_{name}"
        while kept in fields:
            kept = f"input_{kept}"
        fields[kept] = record[name]
    try:
        line = json_line(fields)
    except ValueError as error:
        raise ValueError(f"The model gave a number that is not finite for {record['text']!r:.60}; check it.") from error
    sys.stdout.write(line)
