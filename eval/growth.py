"""Measure how cost grows with candidates and documents, and how fast a collection is embedded.

    python eval/growth.py --results dl21_bm25_top100.jsonl.gz --docs docs/speed.md

The options: ``--help``.
"""

from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script
from e2rank_st.storage import write_json

RESULTS = Path(__file__).parent / "speed" / "growth.json"


def main(
    model: Annotated[str, typer.Option(help="A model's name, as for e2rank.")] = "bundled",
    results: Annotated[Path | None, typer.Option(help="First-stage results whose passages are embedded.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="The passages of how many queries are embedded.")] = 20,
    docs: Annotated[Path | None, typer.Option(help="Put the tables between the marks of this file.")] = None,
) -> None:
    """Rank more candidates and longer documents, and embed a collection."""
    from e2rank_st import load_model
    from e2rank_st.benchmarks.growth import measure, tables
    from e2rank_st.benchmarks.speed import works
    from e2rank_st.benchmarks.summary import put_into
    from e2rank_st.search.vectors import distinct

    texts = distinct(work.documents for work in works(results, 1, queries))
    found = measure(load_model(model), texts, show_progress_bar=True)
    write_json(RESULTS, found)
    typer.echo(tables(found), nl=False)
    if docs is not None:
        put_into(docs, tables(found), "speed-growth")


if __name__ == "__main__":
    run_script(main)
