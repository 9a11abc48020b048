"""Write the cards of the bundled models or of a trained adapter, or check that they are up to date.

    python model_card/render.py
    python model_card/render.py --check

The options: ``--help``.
"""

from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.bundled import BUNDLED
from e2rank_st.cli.evaluate import run_script
from e2rank_st.publishing.card import render
from e2rank_st.storage import write_text

ROOT = Path(__file__).resolve().parents[1]


def main(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a trained adapter; by default all bundled ones.")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Argument(help="With --model: result files, or folders; by default the folder results.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --model: its figures; by default report, beside the card.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --model: the card; by default README.md.")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The repository will hold the adapter alone.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a card is not up to date.")] = False,
) -> None:
    """Make the card of a trained model from its folder and its results."""
    if model is None and (results or report or output or adapter):
        raise ValueError("Got results, --report, --output or --adapter without --model; name the folder of the model.")
    path = output or Path("README.md")
    cards = [(model, results or [Path("results")], report or path.parent / "report", path)] if model else bundled()
    for folder, found, figures, path in cards:
        text = render.render(folder, found, figures, path, adapter)
        if check:
            render.check(text, path)
        else:
            write_text(path, text)


def bundled() -> list[tuple[Path, list[Path], Path, Path]]:
    """Folder, results, figures and card of each bundled model."""
    cards = [(one, ROOT / "model_card" / one.name) for one in BUNDLED.values()]
    return [
        (one.folder, [ROOT / "eval" / "results" / one.name], card / "report", card / "README.md") for one, card in cards
    ]


if __name__ == "__main__":
    run_script(main)
