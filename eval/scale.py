"""Measure what an index takes as it grows: time to write and to search, recall, disk and memory.

    python eval/scale.py --sizes 10000,100000,1000000 --docs docs/scale.md

A million documents take some minutes and 3 GB of disk. The options: ``--help``.
"""

from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script
from e2rank_st.storage import write_json

RESULTS = Path(__file__).parent / "scale" / "results.json"


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of documents, separated by commas.")] = "10000,100000,1000000",
    folder: Annotated[Path | None, typer.Option(help="Where the indexes are written; they are removed again.")] = None,
    output: Annotated[Path, typer.Option(help="File of results.")] = RESULTS,
    docs: Annotated[Path | None, typer.Option(help="Put the tables between the marks of this file.")] = None,
) -> None:
    """Write and search indexes of several sizes, exactly and approximately."""
    from e2rank_st import E2Rank
    from e2rank_st.benchmarks.scale import measure, plan, real_vectors, table
    from e2rank_st.benchmarks.summary import put_into

    vectors, embedded = real_vectors(E2Rank.from_bundled(device="cpu"))
    found = measure(vectors, embedded, [int(size) for size in sizes.split(",")], folder)
    output.parent.mkdir(exist_ok=True)
    write_json(output, found)
    typer.echo(table(found), nl=False)
    if docs is not None:
        put_into(docs, table(found), "scale")
        put_into(docs, plan(found), "plan")


if __name__ == "__main__":
    run_script(main)
