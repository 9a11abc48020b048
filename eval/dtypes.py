"""Measure what bfloat16 changes in rankings, and put the table into docs/speed.md.

    python eval/dtypes.py --data-dir ../shared/data --docs docs/speed.md

A processor without instructions for bfloat16 computes products in float32 and rounds them. The options: ``--help``.
"""

from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script
from e2rank_st.storage import write_json

RESULTS = Path(__file__).parent / "speed" / "dtypes.json"


def main(
    data_dir: Annotated[Path, typer.Option(help="Folder of the data.")] = Path("../shared/data"),
    models: Annotated[str, typer.Option(help="Models, separated by commas.")] = "bundled",
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = "dl21,nfc",
    vectors: Annotated[Path, typer.Option(help="Where document vectors are kept.")] = Path("build/vectors"),
    docs: Annotated[Path | None, typer.Option(help="Put the table between the marks of this file.")] = None,
) -> None:
    """Rank in float32, in bfloat16, and with both."""
    from e2rank_st.benchmarks.dtypes import measure, table
    from e2rank_st.benchmarks.summary import put_into

    found = measure(models.split(","), tasks.split(","), data_dir, vectors=vectors, show_progress_bar=True)
    write_json(RESULTS, found)
    typer.echo(table(found), nl=False)
    if docs is not None:
        put_into(docs, table(found), "speed-dtypes")


if __name__ == "__main__":
    run_script(main)
