"""Time reranking against its peers, and put the tables into docs/speed.md: ``e2rank bench`` with files.

    python eval/speed.py --results dl21_bm25_top100.jsonl.gz --docs docs/speed.md --readme README.md

The options: ``--help``.
"""

from pathlib import Path
from typing import Annotated

import typer

from e2rank_st.cli.bench import run
from e2rank_st.cli.evaluate import run_script
from e2rank_st.storage import write_json

FOLDER = Path(__file__).parent


def main(
    model: Annotated[str, typer.Option(help="Bundled models, qwen3-0.6b or qwen3-small.")] = "bundled,bundled-mpnet",
    work: Annotated[str, typer.Option(help="short, medium and long, separated by commas.")] = "short,long",
    turns: Annotated[int, typer.Option(min=1, help="Counted turns of each way.")] = 5,
    results: Annotated[Path | None, typer.Option(help="First-stage results with text.")] = None,
    dtypes: Annotated[str, typer.Option(help="Types of the weights, separated by commas.")] = "auto",
    tokenizer: Annotated[str, typer.Option(help="Of the qwen3 models.")] = "Qwen/Qwen3-0.6B",
    device: Annotated[str | None, typer.Option(help="By default the best.")] = None,
    name: Annotated[str, typer.Option(help="Of the file of results and the figure.")] = "cpu",
    docs: Annotated[Path | None, typer.Option(help="Put the tables between the marks of this file.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Put a short table between the marks of this file.")] = None,
) -> None:
    """Measure, and write the results, the figure and the tables."""
    found = run(model, work, turns, results, dtypes, tokenizer, device)
    from e2rank_st.benchmarks.figures import draw_speed, save
    from e2rank_st.benchmarks.speed import Line, short_table, tables
    from e2rank_st.benchmarks.summary import put_into

    (FOLDER / "speed").mkdir(exist_ok=True)
    write_json(FOLDER / "speed" / f"{name}.json", found)
    save(draw_speed([Line(**line) for line in found["lines"]]), FOLDER / "speed" / f"{name}.png")
    typer.echo(tables(found), nl=False)
    if docs is not None:
        put_into(docs, tables(found), f"speed-{name}")
    if readme is not None:
        put_into(readme, short_table(found), "speed")


if __name__ == "__main__":
    run_script(main)
