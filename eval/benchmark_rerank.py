"""Time reranking against the recipe of the public model card.

    python eval/benchmark_rerank.py
    python eval/benchmark_rerank.py --turns 10

The options: ``--help``.
"""

import os
from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script
from e2rank_st.console import Column, show


def main(
    turns: Annotated[int, typer.Option(min=1, help="Counted runs of each variant.")] = 5,
) -> None:
    """Time one rerank: this package against the plain recipe, with the same weights and candidates."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported, as the command e2rank does
    from e2rank_st.benchmarks.speed import time_reranking

    title, rows = time_reranking(turns)
    show((Column("variant", share=1), Column("milliseconds a query", ","), Column("speedup", ",")), rows, title)


if __name__ == "__main__":
    run_script(main)
