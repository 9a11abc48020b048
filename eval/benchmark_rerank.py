"""Time reranking against the recipe of the public model card.

    python eval/benchmark_rerank.py
    python eval/benchmark_rerank.py --turns 10

The options: ``--help``.
"""

from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script, show_speeds


def main(
    turns: Annotated[int, typer.Option(min=1, help="Counted runs of each variant.")] = 5,
) -> None:
    """Time one rerank: this package against the plain recipe, with the same weights and candidates."""
    from e2rank_st.benchmarks.speed import time_reranking

    show_speeds(time_reranking(turns))


if __name__ == "__main__":
    run_script(main)
