"""Measure what passages of long documents gain and cost, on development data, and put the table into the docs.

    python eval/long_documents.py --data-dir ../shared/data

The options: ``--help``.
"""

import re
from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script
from e2rank_st.storage import read_json, write_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "eval" / "long_documents" / "results.json", ROOT / "docs" / "reranking.md"
MARKS = re.compile(r"(<!-- long documents -->\n).*?(<!-- /long documents -->)", re.DOTALL)


def main(
    data_dir: Annotated[Path, typer.Option(help="Folder with mediqa and squad.")] = Path("../shared/data"),
    model: Annotated[str, typer.Option(help="A model's name, as for e2rank.")] = "bundled",
    queries: Annotated[int, typer.Option(min=1, help="Queries of each data set.")] = 12,
    measure_again: Annotated[bool, typer.Option(help="Measure, and not only write the table of the file.")] = True,
) -> None:
    """Rerank long documents, cut and as passages."""
    from e2rank_st import load_model
    from e2rank_st.benchmarks.long_documents import Measured, as_json, measure, table

    if measure_again:
        RESULTS.parent.mkdir(exist_ok=True)
        rows = as_json(measure(load_model(model, device="cpu"), data_dir, queries))
        write_json(RESULTS, {"model": model, "results": rows})
    text = table([Measured(**row) for row in read_json(RESULTS)["results"]])
    content, number = MARKS.subn(lambda found: found[1] + text + found[2], PAGE.read_text(encoding="utf-8"))
    if number != 1:
        raise ValueError(f"{PAGE} lacks the marks <!-- long documents --> and <!-- /long documents -->.")
    write_text(PAGE, content)


if __name__ == "__main__":
    run_script(main)
