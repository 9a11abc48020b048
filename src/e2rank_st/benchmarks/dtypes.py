"""A model in a smaller type of its weights → what that changes in its rankings.

Three ways are compared on the same candidates: all in float32; all in the smaller type; and queries and prompts in the
smaller type over document vectors in float32, as they were stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from e2rank_st.benchmarks.candidates import Candidates
from e2rank_st.benchmarks.first_stages import locate, own_first_stage, read_files
from e2rank_st.benchmarks.instructions import instructed
from e2rank_st.benchmarks.measurement import Entrant
from e2rank_st.benchmarks.measurement import measure as rank
from e2rank_st.benchmarks.models import Subject, load
from e2rank_st.benchmarks.systems import Listwise
from e2rank_st.benchmarks.tasks import Task, find_tasks
from e2rank_st.console import markdown_table
from e2rank_st.evaluation.metrics import MAIN, evaluate, mean
from e2rank_st.precision import has_instructions
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct

__all__ = ["WHOLE", "Found", "measure", "table"]

WHOLE = "float32"
TOP = 10


@dataclass(frozen=True)
class Found:
    """One way to rank a task's candidates.

    Attributes:
        model: Name of the model.
        task: Title of the task.
        way: Which parts have which type.
        queries: Number of judged queries.
        score: Mean nDCG@10, from 0 to 1.
        reordered: Share of the queries whose first ten documents are in another order than in float32.
        replaced: Share of the queries whose first ten are other documents.
    """

    model: str
    task: str
    way: str
    queries: int
    score: float
    reordered: float
    replaced: float


class RoundedLinear(nn.Linear):
    """A linear layer that computes as a processor with instructions for its type does: sums are of float32.

    Without such instructions, torch computes the same in ten times the time.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Rounds the product of the rounded values."""
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias).to(self.weight.dtype)


def with_rounded_products(model: nn.Module) -> None:
    """Make each linear layer of a model a :class:`RoundedLinear`, with the same weights."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = RoundedLinear


def measure(
    names: Sequence[str],
    tasks: Sequence[str],
    data_dir: Path,
    *,
    dtype: str = "bfloat16",
    vectors: Path | None = None,
    show_progress_bar: bool = False,
) -> list[dict[str, Any]]:
    """Rank the candidates of each task by each model in each way.

    Args:
        names: Models, as for :func:`~e2rank_st.benchmarks.models.load`.
        tasks: Names of tasks. BM25's candidates are ranked where the data folder has them, and else the model's own.
        data_dir: The data folder.
        dtype: The smaller type.
        vectors: Where document vectors are kept; None keeps none.
        show_progress_bar: Whether to show bars.

    Returns:
        The fields of :class:`Found`, for each model, task and way.
    """
    rows: list[Found] = []
    for name in names:
        whole, small = (load(name, device="cpu", dtype=type_, vectors=vectors) for type_ in (WHOLE, dtype))
        if not has_instructions():
            with_rounded_products(small.model)
        for task in find_tasks(tasks):
            with instructed(whole.model, task.retrieval_instruction):
                candidates, stored = _candidates(whole, task, data_dir, show_progress_bar)
            rows += _compare(whole, small, task, candidates, stored, dtype, show_progress_bar)
    return [asdict(row) for row in rows]


def _candidates(model: Subject, task: Task, data_dir: Path, bars: bool) -> tuple[Candidates, TextVectors]:
    folder = data_dir / (task.folder or task.name)
    if folder.is_dir():
        return own_first_stage(model, task, folder, 100, show_progress_bar=bars)
    candidates = read_files(locate(task, "bm25", data_dir), "bm25", 100).checked()
    return candidates, model.embed(distinct(case.documents for case in candidates.cases), show_progress_bar=bars)


def _compare(
    whole: Subject, small: Subject, task: Task, candidates: Candidates, stored: TextVectors, dtype: str, bars: bool
) -> list[Found]:
    """Rank in all ways, and compare each with float32."""
    ways = {
        WHOLE: (whole, stored),
        dtype: (small, small.embed(stored.texts, show_progress_bar=bars)),
        f"{dtype}, document vectors in {WHOLE}": (small, stored),
    }
    runs: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for way, (subject, index) in ways.items():
        with instructed(subject.model, task.retrieval_instruction):
            entrant = Entrant("model", subject.model, {way: Listwise(subject.model)}, candidates.cases, index)
            runs[way] = rank([entrant], embedding_queries=0, show_progress_bar=bars)[way].run
    tops = {way: {query: list(ranked)[:TOP] for query, ranked in run.items()} for way, run in runs.items()}
    rows = []
    for way, run in runs.items():
        pairs = [(top, tops[way][query]) for query, top in tops[WHOLE].items()]
        rows.append(
            Found(
                model=whole.name,
                task=task.title,
                way=way,
                queries=len(pairs),
                score=mean(evaluate(run, candidates.judgements, task.relevant_from)[MAIN]),
                reordered=fmean(one != other for one, other in pairs),
                replaced=fmean(set(one) != set(other) for one, other in pairs),
            )
        )
    return rows


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Write what :func:`measure` found as a table in Markdown."""
    header = ("model", "data", "queries", "type", "nDCG@10", "another order of the first 10", "other documents there")
    cells = [
        (
            f"`{row.model.rpartition('/')[2]}`", row.task, f"{row.queries}", row.way, f"{100 * row.score:.2f}",
            f"{row.reordered:.1%}", f"{row.replaced:.1%}",
        )
        for row in (Found(**row) for row in found)
    ]  # fmt: skip
    return markdown_table(header, cells, labels=4) + "\n"
