"""Write the card of a trained model, or check that it is up to date.

    python model_card/render.py
    python model_card/render.py --check

The options: ``--help``.
"""

from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.adapters import bundled_folder
from e2rank_st.cli.evaluate import run_script
from e2rank_st.publishing.card import render
from e2rank_st.storage import write_text


def main(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the trained adapter; by default the bundled one.")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Argument(help="Result files, or folders; by default eval/results.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The report's figures; by default the card's folder report.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The card.")] = Path("model_card/README.md"),
    adapter: Annotated[bool, typer.Option("--adapter", help="The repository will hold the adapter alone.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if the card is not up to date.")] = False,
) -> None:
    """Make the card of a trained model from its folder and its results."""
    figures = report or output.parent / "report"
    text = render.render(model or bundled_folder(), results or [Path("eval/results")], figures, output, adapter)
    if check:
        render.check(text, output)
    else:
        write_text(output, text)


if __name__ == "__main__":
    run_script(main)
