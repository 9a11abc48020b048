"""Files of a first stage, or an index, with judgements → the verdict of ``e2rank tune``, as table, JSON and figure."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from e2rank_st.benchmarks.candidates import Candidates
from e2rank_st.benchmarks.first_stages import Files, read_files, read_index, read_over_texts
from e2rank_st.console import Column, show
from e2rank_st.evaluation.tuning import Tuning, tune, write_setting
from e2rank_st.folders.saved import listwise_config
from e2rank_st.search.index import SearchIndex
from e2rank_st.search.texts import TextVectors
from e2rank_st.storage import write_json

if TYPE_CHECKING:
    from e2rank_st.model import E2Rank

__all__ = ["Inputs", "decide", "report"]

COLUMNS = (Column("ranking", share=1), Column("nDCG@10", ".2f", style="green"), Column("gain", "+.2f"))
BEST = 5  # settings in the table


@dataclass(frozen=True)
class Inputs:
    """What the user named; a form of first stage has ``results`` alone, ``run`` with texts, or ``index`` with queries.

    Attributes:
        qrels: Judgements in TREC's form.
        results: First-stage results with text.
        run: TREC run.
        index: Folder of an index.
        queries: Texts of the queries of a run, or for an index.
        corpus: Texts of the documents of a run.
    """

    qrels: Path
    results: Path | None
    run: Path | None
    index: Path | None
    queries: Path | None
    corpus: Path | None

    def check(self) -> None:
        """Refuse what does not tell where the candidates come from.

        Raises:
            ValueError: Files are missing, or belong to different first stages.
        """
        given = {name for name, value in vars(self).items() if value is not None} - {"qrels"}
        forms = ({"results"}, {"run", "corpus", "queries"}, {"index", "queries"})
        if given not in forms:
            got = " ".join(f"--{name}" for name in vars(self) if name in given) or "none of them"
            raise ValueError(
                f"got {got}; give --results, or --run with --corpus and --queries, or --index with --queries"
            )

    def read(self, model: E2Rank, top_n: int) -> tuple[Candidates, TextVectors | None]:
        """Read or retrieve the candidates of the judged queries; judgements of further queries are left out.

        Raises:
            ValueError: The files do not fit together.
            OSError: A file cannot be read.
        """
        index = None
        if self.results is not None:
            found = read_files(Files(self.results, self.qrels), "results", top_n)
        elif self.run is not None:
            assert self.corpus is not None and self.queries is not None
            found = read_over_texts(self.run, self.corpus, self.queries, self.qrels, top_n)
        else:
            assert self.index is not None and self.queries is not None
            found, index = read_index(SearchIndex.open(self.index, model), self.queries, self.qrels, top_n)
        ids = {case.query_id for case in found.cases}
        both = {query: grades for query, grades in found.judgements.items() if query in ids}
        unused = len(found.cases) - len(both), len(found.judgements) - len(both)
        if both and any(unused):
            typer.echo(f"left out: {unused[0]} queries without judgements, {unused[1]} without candidates", err=True)
        return replace(found, judgements=both or found.judgements).checked(judged_only=True), index


def decide(model: E2Rank, inputs: Inputs, *, top_n: int, seed: int, batch_size: int, show_progress_bar: bool) -> Tuning:
    """Tune a model on files of the user.

    Raises:
        ValueError: The files do not fit together, or do not allow tuning.
        OSError: A file cannot be read.
    """
    candidates, index = inputs.read(model, top_n)
    grades = [candidates.judgements[case.query_id] for case in candidates.cases]
    return tune(
        model,
        [case.query for case in candidates.cases],
        [case.documents for case in candidates.cases],
        [[known.get(id_) for id_ in case.ids] for case, known in zip(candidates.cases, grades, strict=True)],
        # The scores of an index are the plain embedding's, which the query's share mixes already.
        first_stage_scores=None if index is not None else [case.scores for case in candidates.cases],
        ideal=[list(known.values()) for known in grades],
        index=index,
        seed=seed,
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
    )


def report(tuning: Tuning, *, write: Path | None, output: Path | None, figure: Path | None) -> None:
    """Show a table and the verdict, and write what is wanted.

    Args:
        tuning: The result.
        write: A model folder that gets the settings, if the verdict is to rerank.
        output: File for everything as JSON.
        figure: File for a figure; its ending is the format.

    Raises:
        OSError: A file cannot be written.
        ImportError: matplotlib is missing.
    """
    rows = [("first stage", tuning.first_stage), ("plain embedding", tuning.embedding)]
    if tuning.configured is not None:
        rows.append(("as the model is configured", tuning.configured))
    rows.append(("chosen on other queries (held out)", tuning.held_out))
    rows += [(f"{setting} (all queries)", score) for setting, score in tuning.trials[:BEST]]
    table = [(name, 100 * score, 100 * (score - tuning.first_stage)) for name, score in rows]
    show(COLUMNS, table, title=f"{tuning.queries} queries, {len(tuning.trials)} settings")
    mark = "" if sys.stdout.isatty() else "# "
    typer.echo("\n".join(f"{mark}{sentence}" for sentence in tuning.sentences()))
    if output is not None:
        write_json(output, tuning.as_dict())
    if figure is not None:
        from e2rank_st.benchmarks.figures import draw_tuning, save

        save(draw_tuning(tuning), figure)
    if write is not None and tuning.verdict == "rerank":
        write_setting(write, tuning.setting)
        typer.echo(f"wrote {tuning.setting} to {listwise_config(write)}", err=True)
    elif write is not None:
        typer.echo(f"{write} stays as it is: the verdict is not to rerank with these settings", err=True)
