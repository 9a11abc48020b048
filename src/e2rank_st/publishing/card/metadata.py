"""A model's facts and results → the metadata of its card, ``model-index`` included.

What MTEB measured on its own data is told as MTEB tells it. What was measured on local copies of data goes by another
data set name, without a revision of the public one, so that nobody takes it for an official result.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from huggingface_hub import EvalResult, ModelCardData

from e2rank_st.benchmarks.results import Row
from e2rank_st.publishing.card.facts import Facts

__all__ = ["card_data", "own_rows"]

DIGITS = 5
LICENCE, LANGUAGE = "apache-2.0", "en"
TAGS = ["sentence-transformers", "feature-extraction", "e2rank", "reranker", "listwise", "mteb"]
IN_INDEX = {"embedding": "text-retrieval", "listwise": "text-ranking"}  # kind of system → the Hub's name of the task


def own_rows(name: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of the model with this name, whatever organisation results put before it.

    Raises:
        ValueError: There are none; or those of any model, since a card shows all, are partial or of several states.
    """
    own = [row for row in rows if row.model.rpartition("/")[2] == name]
    if not own:
        found = ", ".join(sorted({row.model for row in rows if row.model}))
        raise ValueError(f"No results of {name}, but of {found or 'no model'}; evaluate it first, or name its results.")
    partial = sorted({f"{row.column} ({row.system})" for row in rows if row.partial})
    if partial:
        raise ValueError(
            f"Results on a part of the queries are no results for a card: {', '.join(partial)}. Run them in full."
        )
    for model in dict.fromkeys(row.model for row in rows if row.model):
        revisions = sorted({row.revision for row in rows if row.model == model})
        if len(revisions) > 1:
            raise ValueError(f"Results of {model} are of several states of it: {', '.join(revisions)}. Run them anew.")
    return own


def card_data(facts: Facts, own: Sequence[Row]) -> ModelCardData:
    """Make the metadata.

    Args:
        facts: Of the model.
        own: Its rows, see :func:`own_rows`.
    """
    return ModelCardData(
        language=LANGUAGE,
        license=LICENCE,
        library_name="sentence-transformers",
        pipeline_tag="text-ranking",
        base_model=facts.base,
        base_model_relation="finetune",
        datasets=[row.hub for row in facts.data.sources if row.hub],
        tags=TAGS,
        model_name=facts.name,
        eval_results=[result for row in own if row.kind in IN_INDEX for result in _eval_results(row)],
    )


def _eval_results(row: Row) -> Iterator[EvalResult]:
    if row.local or row.benchmark != "mteb":
        yield _own_result(row)
        return
    for result in _official(row):
        name = result.metric_name if row.kind == "embedding" else f"{result.metric_name}, {row.system}"
        yield replace(result, metric_name=name, metric_value=round(result.metric_value, DIGITS))


def _own_result(row: Row) -> EvalResult:
    """A result that is nobody's but ours: it names no data set of the Hub."""
    name = f"{row.column} ({'local copy' if row.local else 'own run'})"
    return EvalResult(
        task_type=IN_INDEX[row.kind],
        dataset_name=name,
        dataset_type=re.sub(r"\W+", "-", name.lower()).strip("-"),
        metric_type=row.result["main_metric"],
        metric_name=f"{row.result['main_metric']}, {row.system}",
        metric_value=round(row.scores["main"], DIGITS),
    )


def _official(row: Row) -> list[EvalResult]:
    """What MTEB says of its result, under the revision of the data that it was measured on."""
    from mteb.results import TaskResult  # only here: a card without official results needs no mteb

    result = TaskResult.from_dict(dict(row.result["result"]))
    with warnings.catch_warnings():  # the Hub still reads model-index, whatever MTEB prefers
        warnings.simplefilter("ignore", DeprecationWarning)
        found: list[EvalResult] = result.get_hf_eval_results()
    return [replace(part, dataset_revision=result.dataset_revision) for part in found]
