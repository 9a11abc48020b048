"""Time training against a bare forward and backward pass of the same backbone.

    python eval/benchmark_training.py
    python eval/benchmark_training.py --turns 5 --steps 20

The options: ``--help``.
"""

from typing import Annotated

import typer

from e2rank_st.cli.evaluate import run_script, show_speeds


def main(
    turns: Annotated[int, typer.Option(min=1, help="Counted runs of each.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a run.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Slates of a step.")] = 4,
) -> None:
    """Time the trainer against a bare forward and backward pass over the same batches."""
    from e2rank_st.benchmarks.training_speed import time_training

    show_speeds(time_training(turns, steps, batch_size))


if __name__ == "__main__":
    run_script(main)
