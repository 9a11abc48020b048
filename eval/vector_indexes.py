"""Measure what approximate search costs on judged collections, on disk and end to end.

    python eval/vector_indexes.py --data-dir ../shared/data --docs docs/search.md

Two cores embed NFCorpus and SciFact in a quarter of an hour. The options: ``--help``.
"""

from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script
from e2rank_st.storage import write_json

RESULTS = Path(__file__).parent / "vector_indexes" / "results.json"


def main(
    data_dir: Annotated[Path, typer.Option(help="Folder of the collections.")] = Path("../shared/data"),
    collections: Annotated[str, typer.Option(help="Their names, separated by commas.")] = "nfcorpus,scifact",
    model: Annotated[str, typer.Option(help="A model's name, as for e2rank.")] = "bundled",
    folder: Annotated[Path, typer.Option(help="Where the indexes are kept.")] = Path("build/indexes"),
    docs: Annotated[Path | None, typer.Option(help="Put the table between the marks of this file.")] = None,
) -> None:
    """Search judged collections, exactly and approximately, and rerank."""
    from e2rank_st import load_model
    from e2rank_st.benchmarks.summary import put_into
    from e2rank_st.benchmarks.vector_indexes import measure, table

    found = measure(load_model(model, device="cpu"), [data_dir / name for name in collections.split(",")], folder)
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, found)
    typer.echo(table(found), nl=False)
    if docs is not None:
        put_into(docs, table(found), "vector indexes")


if __name__ == "__main__":
    run_script(main)
