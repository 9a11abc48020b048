"""A model's facts and results → the metadata of its card, ``model-index`` included.

Results of MTEB on its own data are told as MTEB tells them. Results on local copies of data have a data set name of
their own, without a revision of the public one, so that nobody takes them for official ones.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from huggingface_hub import EvalResult, ModelCardData

from e2rank_st.benchmarks.results import Entry
from e2rank_st.publishing.card.facts import Facts

__all__ = ["card_data", "own_entries"]

DIGITS = 5
LICENCE, LANGUAGE = "apache-2.0", "en"
TAGS = ["sentence-transformers", "feature-extraction", "e2rank", "reranker", "listwise", "mteb"]
IN_INDEX = {"embedding": "text-retrieval", "listwise": "text-ranking"}  # kind of system → the Hub's name of the task


def own_entries(name: str, entries: Sequence[Entry]) -> list[Entry]:
    """The entries of the model with this name, whatever organisation results put before it.

    Raises:
        ValueError: There are none; or those of any model, since a card shows all, are partial or of several states.
    """
    own = [entry for entry in entries if entry.model.rpartition("/")[2] == name]
    if not own:
        found = ", ".join(sorted({entry.model for entry in entries if entry.model}))
        raise ValueError(f"No results of {name}, but of {found or 'no model'}; evaluate it first, or name its results.")
    partial = sorted({f"{entry.column} ({entry.name})" for entry in entries if entry.result.partial})
    if partial:
        raise ValueError(f"A card shows no results on a part of the queries: {', '.join(partial)}. Run them in full.")
    for model in dict.fromkeys(entry.model for entry in entries if entry.model):
        revisions = sorted({entry.revision for entry in entries if entry.model == model})
        if len(revisions) > 1:
            raise ValueError(f"Results of {model} are of several states of it: {', '.join(revisions)}. Run them anew.")
    return own


def card_data(facts: Facts, own: Sequence[Entry]) -> ModelCardData:
    """Make the metadata of a model from its facts and its entries: see :func:`own_entries`."""
    return ModelCardData(
        language=LANGUAGE,
        license=LICENCE,
        library_name="sentence-transformers",
        pipeline_tag="text-ranking",
        base_model=facts.base,
        base_model_relation="adapter" if facts.keeps_vectors else "finetune",
        datasets=[row.hub for row in facts.data.sets if row.hub],
        tags=TAGS,
        model_name=facts.name,
        eval_results=[result for entry in own if entry.system.kind in IN_INDEX for result in _eval_results(entry)],
    )


def _eval_results(entry: Entry) -> Iterator[EvalResult]:
    if entry.result.local or entry.result.benchmark != "mteb":
        yield _own_result(entry)
        return
    for result in _official(entry):
        name = result.metric_name if entry.system.kind == "embedding" else f"{result.metric_name}, {entry.name}"
        yield replace(result, metric_name=name, metric_value=round(result.metric_value, DIGITS))


def _own_result(entry: Entry) -> EvalResult:
    """A result of ours alone: it names no data set of the Hub."""
    name = f"{entry.column} ({'local copy' if entry.result.local else 'own run'})"
    return EvalResult(
        task_type=IN_INDEX[entry.system.kind],
        dataset_name=name,
        dataset_type=re.sub(r"\W+", "-", name.lower()).strip("-"),
        metric_type=entry.result.main_metric,
        metric_name=f"{entry.result.main_metric}, {entry.name}",
        metric_value=round(entry.main, DIGITS),
    )


def _official(entry: Entry) -> list[EvalResult]:
    """MTEB's own words about its result, under the revision of the data that it was measured on."""
    from mteb.results import TaskResult  # only here: a card without official results needs no mteb

    result = TaskResult.from_dict(dict((entry.result.mteb or {})["result"]))
    with warnings.catch_warnings():  # the Hub still reads model-index, whatever MTEB prefers
        warnings.simplefilter("ignore", DeprecationWarning)
        found: list[EvalResult] = result.get_hf_eval_results()
    return [replace(part, dataset_revision=result.dataset_revision) for part in found]
