"""Measure a server under load: mixed requests of several clients, with batching and without.

    python eval/load.py --seconds 20 --turns 3 --docs docs/serving.md

It takes 7 minutes, and compares every answer with a direct call. The options: ``--help``.
"""

from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script
from e2rank_st.storage import write_json

RESULTS = Path(__file__).parent / "load" / "results.json"


def main(
    model: Annotated[str, typer.Option(help="Hub id, folder, or name of a bundled model.")] = "bundled",
    clients: Annotated[str, typer.Option(help="Numbers of clients, separated by commas.")] = "1,8,64",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each turn of each server.")] = 20.0,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each number of clients.")] = 3,
    output: Annotated[Path, typer.Option(help="File of results.")] = RESULTS,
    docs: Annotated[Path | None, typer.Option(help="Put the table between the marks of this file.")] = None,
) -> None:
    """Ask a server with batching and one without, in turns."""
    from e2rank_st.benchmarks.load import measure, requests, table
    from e2rank_st.benchmarks.summary import put_into
    from e2rank_st.loading import load_model

    given = requests(load_model(model, device="cpu"))
    numbers = [int(number) for number in clients.split(",")]
    found = measure(model, given, clients=numbers, seconds=seconds, turns=turns)
    output.parent.mkdir(exist_ok=True)
    write_json(output, found)
    typer.echo(table(found), nl=False)
    if docs is not None:
        put_into(docs, table(found), "load")


if __name__ == "__main__":
    run_script(main)
