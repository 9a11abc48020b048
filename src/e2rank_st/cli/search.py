"""Documents of a user → an index on disk, and queries → its hits, as a table, JSON lines or a TREC run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from e2rank_st.cli.models import BUNDLED, IndexModel, load_encoder, name_of_maker, step
from e2rank_st.cli.options import BatchSize, Device, Dtype, Verbose, examples
from e2rank_st.console import Column, json_line, show
from e2rank_st.data.documents import iter_documents
from e2rank_st.data.files import DataError, id_field, text_field
from e2rank_st.data.trec import write_run

if TYPE_CHECKING:
    from e2rank_st.search.index import SearchIndex

__all__ = ["INDEX_EXAMPLES", "SEARCH_EXAMPLES", "index", "search"]

COLUMNS = (
    Column("rank", "d", style="bold"),
    Column("score", ".4f", style="green"),
    Column("before", "d"),
    Column("id", share=1, style="cyan"),
    Column("text", share=3),
)
TOGETHER = 64  # queries of a call
INDEX_EXAMPLES = examples(
    "index notes/ --to notes.lance",
    "index articles.jsonl --to articles.lance --long-documents passages",
    "index notes.lance --info",
)
SEARCH_EXAMPLES = examples(
    'search notes.lance "how long do fleas live"',
    'search articles.lance "how long do fleas live" --where "year > 2020" --json',
    "search articles.lance --queries queries.jsonl --run out.trec",
)


def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of text files; JSON lines, CSV or parquet with 'text'; or a file with one document a line.",
        ),
    ],
    to: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The index: a folder, or an address such as s3://...")
    ] = None,
    info: Annotated[bool, typer.Option("--info", help="Show what the index SOURCE holds.")] = False,
    long_documents: Annotated[
        Literal["cut", "passages"] | None,
        typer.Option(help="Long documents: keep the start, or a vector for each passage; by default as in the index."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Embed with N workers of Ray; RAY_ADDRESS names a cluster.")
    ] = 0,
    model: IndexModel = None,
    device: Device = None,
    dtype: Dtype = "saved",
    batch_size: BatchSize = 32,
    verbose: Verbose = 0,
) -> None:
    """Embed documents once, and keep them with their vectors. If the index exists, what is new or changed is added."""
    from e2rank_st.search.index import SearchIndex

    if (to is None) != info:
        raise typer.BadParameter("give --to FOLDER to index SOURCE, or --info to look at an index")
    if to is None:
        for name, value in SearchIndex.open(source).info().items():
            shown = value if isinstance(value, str) and value.isprintable() else json.dumps(value, ensure_ascii=False)
            typer.echo(f"{name}\t{shown}")
        return
    if source != "-" and not Path(source).exists():
        raise FileNotFoundError(f"There is no file or folder {source}.")
    maker = name_of_maker(to)
    if maker is None and Path(to).is_dir() and name_of_maker(source):  # it would lie between the user's files
        raise typer.BadParameter(f"{source} is an index; name the documents first, and the index after --to")
    name = model or maker or BUNDLED
    encoder = load_encoder(name, device, dtype)
    with step(f"indexing {source}", spin=False):
        found = SearchIndex.create(to, encoder, long_documents=long_documents)
        if workers:
            from e2rank_st.integrations.ray import add_with_ray
            from e2rank_st.loading import load_model

            load = partial(load_model, name, device=device, dtype=dtype)
            changes = add_with_ray(to, load, source, workers=workers, batch_size=batch_size)
        else:
            changes = found.add(_documents(source), batch_size=batch_size, show_progress_bar=sys.stderr.isatty())
    if not any(changes):
        raise ValueError(f"{source} holds no documents.")
    told = ", ".join(f"{number} {name}" for name, number in changes._asdict().items())
    typer.echo(f"{to} holds {len(found)} documents: {told}", err=True)


def search(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The index.")],
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="The query.")] = None,
    queries: Annotated[
        str | None, typer.Option(metavar="FILE", help="Many queries: one a line, or JSON lines with 'id' and 'text'.")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a TREC run of all candidates.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON lines, with all fields.")] = False,
    top_k: Annotated[int, typer.Option(min=1, metavar="N", help="Results for each query.")] = 10,
    num_candidates: Annotated[int, typer.Option(min=1, metavar="N", help="Candidates to rerank.")] = 100,
    first_stage: Annotated[
        Literal["vector", "text", "hybrid"], typer.Option(help="Candidates by vectors, by words (BM25), or by both.")
    ] = "vector",
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="A condition on fields, such as \"lang = 'en' AND year > 2020\".")
    ] = None,
    rerank: Annotated[bool, typer.Option(help="Rerank the candidates listwise.")] = True,
    first_stage_weight: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="W", help="Share of the first stage in the final score.")
    ] = None,
    min_similarity: Annotated[
        float | None, typer.Option(min=-1, max=1, metavar="X", help="Leave out documents less similar to the query.")
    ] = None,
    model: IndexModel = None,
    device: Device = None,
    dtype: Dtype = "auto",
    verbose: Verbose = 0,
) -> None:
    """Search an index: retrieve candidates, and rerank them with their stored vectors."""
    from e2rank_st.search.index import SearchIndex

    if (query is None) == (queries is None) or (run is not None and queries is None):
        raise typer.BadParameter("give one QUERY, or --queries FILE; --run needs --queries")
    if run is not None and as_json:
        raise typer.BadParameter("got --run and --json; give one of them: both say in which form the hits are written")
    if first_stage_weight is not None and not rerank:
        raise typer.BadParameter("got --first-stage-weight with --no-rerank; it is a weight of reranking")
    asked = {"1": text_field({"QUERY": query}, "QUERY")} if queries is None else _queries(queries)
    encoder = load_encoder(model or SearchIndex.open(folder).settings["model"] or BUNDLED, device, dtype)
    options: dict[str, Any] = {} if first_stage_weight is None else {"first_stage_weight": first_stage_weight}
    found = _search_all(
        SearchIndex.open(folder, encoder),
        asked,
        top_k=max(top_k, num_candidates) if run else top_k,
        num_candidates=num_candidates,
        first_stage=first_stage,
        where=where,
        rerank=rerank,
        min_similarity=min_similarity,
        **options,
    )
    if run is not None:
        write_run(run, {id_: {hit["id"]: hit["score"] for hit in hits} for id_, hits in found}, "e2rank")
        return
    for id_, hits in found:
        if as_json:
            _write(hits, {} if queries is None else {"query_id": id_})
        else:
            _show(hits, "" if queries is None else asked[id_])


def _write(hits: list[dict[str, Any]], more: dict[str, Any]) -> None:
    for rank, hit in enumerate(hits, 1):
        sys.stdout.write(json_line({**more, "rank": rank, **hit}))


def _show(hits: list[dict[str, Any]], title: str) -> None:
    rows = [
        (rank, hit["score"], hit["retrieval_rank"], hit["id"], f"{hit['title']} {hit['text']}")
        for rank, hit in enumerate(hits, 1)
    ]
    show(COLUMNS, rows, title=title)


def _documents(source: str) -> Any:
    return iter_documents(source) if source == "-" else Path(source)


def _queries(source: str) -> dict[str, str]:
    """Queries by id; one without an id is named by its number, from 1."""
    queries: dict[str, str] = {}
    for number, row in enumerate(iter_documents(source), 1):
        name = next((name for name in ("id", "_id") if row.get(name) is not None), None)
        try:
            id_ = str(number) if name is None else id_field(row, name)
            if id_ in queries:
                raise DataError("id", "appears twice", f"{id_!r:.60}; give each query its own.")
            queries[id_] = text_field(row, "text")
        except DataError as error:
            raise error.at(f"{source}: query {number}") from error.__cause__
    if not queries:
        raise ValueError(f"{source} holds no queries; give one a line, or JSON lines with 'id' and 'text'.")
    return queries


def _search_all(
    index: SearchIndex, queries: dict[str, str], **options: Any
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Search for some queries at a time; yield the id of each, and its hits."""
    ids = list(queries)
    for start in range(0, len(ids), TOGETHER):
        part = ids[start : start + TOGETHER]
        yield from zip(part, index.search([queries[id_] for id_ in part], **options), strict=True)
