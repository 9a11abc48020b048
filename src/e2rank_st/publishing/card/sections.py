"""A model's facts and results → the parts of its card that hold numbers, in Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2rank_st.benchmarks.figures import FIGURES
from e2rank_st.benchmarks.report import Table, comparison_table, latency_table, main_table
from e2rank_st.benchmarks.results import Entry, column_with_marks
from e2rank_st.benchmarks.training_data import by_name
from e2rank_st.console import markdown_table
from e2rank_st.evaluation.evaluator import SYSTEMS
from e2rank_st.publishing.card.facts import Facts
from e2rank_st.training.record import stages

__all__ = [
    "environment",
    "figures",
    "formats",
    "overview",
    "results",
    "speed",
    "training_data",
    "tuning",
    "where_it_hurts",
    "zero_shot",
]

MEANINGS = {  # of the figures that a report may hold
    "scores": "Main score of each system on each task, with confidence intervals where there are any",
    "latency": "Quality against the time a query takes",
    "prompt-documents": "Quality against the number of documents in the prompt",
    "gains": "Gains and losses of listwise reranking, query by query",
}
ORDERS = {"similarity": "those nearest to the query by the model's own cosine", "given": "the caller's first"}

# How the text of a listwise prompt becomes tokens where this project's code does not run.
CHAT_RECIPE = """In other libraries, render the text as one user message of the chat template, then tokenise the result
with `tokenizer(text, split_special_tokens=False, add_special_tokens=False)`. By default the tokenizer is safe for
embedding: it splits control tokens in a text and appends its own last token, and both would break a prompt. So
remove control tokens from queries and documents first."""
PLAIN_RECIPE = """In other libraries, `tokenizer(text)` makes the tokens of the prompt. It takes control tokens in a
text as ordinary characters (`split_special_tokens`)."""

# With a prompt adapter, the tokenizer is the base's, whatever it does with control tokens.
ADAPTED = """Other libraries load the base. The LoRA adapter beside the reranking configuration is for prompts only; its
files are PEFT's. """
NAMED = {  # the start of a system's name → what it is
    "embedding": "`embedding` is the plain cosine.",
    "rocchio": "`rocchio` moves the query's vector towards its nearest documents.",
    "listwise": "`listwise` reranks the candidates of a first stage.",
    "fused": "`fused` mixes in the scores of the first stage.",
    "two-stage": "`two-stage` reranks the model's own best.",
    "baseline": "`baseline` is the model before training, with its own settings of the listwise prompt.",
}
ADAPTED_PLAIN = """`tokenizer(text, split_special_tokens=True)` makes the tokens of the prompt. It takes control tokens
in a text as ordinary characters."""


def overview(facts: Facts) -> str:
    """The model, a row a property."""
    listwise, share = facts.listwise, facts.listwise.query_weight
    rows = {
        "base": f"[{facts.base}](https://huggingface.co/{facts.base})",
        "trained": f"LoRA of rank {facts.adapter['r']}, {facts.trained_parameters:,} parameters, "
        + ("for listwise prompts only" if facts.keeps_vectors else "merged"),
        "vectors": ("those of the base: " if facts.keeps_vectors else "")
        + f"{facts.dimension} dimensions, {facts.pooling} pooling, unit length, compared by cosine",
        "longest text": f"{facts.max_tokens} tokens of a query or document; the rest is cut",
        "longest prompt": f"{listwise.max_prompt_tokens} tokens, the query's at most {listwise.max_query_tokens}",
        "documents in a prompt": f"{listwise.num_prompt_documents}, {ORDERS[listwise.candidate_order]}",
        "final query vector": f"{1 - share:g} of the prompt's, {share:g} of the query's own"
        if share
        else "the prompt's",
    }
    return markdown_table(("", ""), rows.items())


def formats(facts: Facts) -> str:
    """The texts that the model gets, as its configuration writes them, and how others tokenise them."""
    prompts = facts.prompts
    prompt = facts.listwise.format.render(facts.listwise.instruction, "{query}", ["{document 1}", "{document 2}", "…"])
    rows = {
        "query": f"{prompts.get('query') or ''}{{query}}",
        "document": f"{prompts.get('document') or ''}{{document}}",
        "listwise prompt": prompt,
    }
    lines = [(name, f"`{json.dumps(text, ensure_ascii=False)}`") for name, text in rows.items()]
    recipe = CHAT_RECIPE if facts.listwise.format.chat else ADAPTED_PLAIN if facts.keeps_vectors else PLAIN_RECIPE
    recipe = (ADAPTED if facts.keeps_vectors else "") + recipe
    return f"{markdown_table(('for', 'text'), lines).rstrip()}\n\n{recipe}"


def systems(entries: Sequence[Entry]) -> str:
    """What the names of the systems in the results mean."""
    names = {entry.name for entry in entries}
    return "\n".join(text for part, text in NAMED.items() if any(name.startswith(part) for name in names))


def results(entries: Sequence[Entry], own: Sequence[Entry]) -> str:
    """For each benchmark the scores of all models, and how this one's systems differ."""
    tables = []
    for benchmark in dict.fromkeys(entry.result.benchmark for entry in entries):
        for make, source in ((main_table, entries), (comparison_table, own)):
            tables.append(make([entry for entry in source if entry.result.benchmark == benchmark], benchmark))
    return _tables(table for table in tables if table.rows)


def speed(entries: Sequence[Entry]) -> str:
    """Times a query."""
    timed = [entry for entry in entries if any(entry.system.latency.values())]
    return _tables([latency_table(timed, timed[0].result.benchmark)]) if timed else "Times were not measured."


def _tables(tables: Iterable[Table]) -> str:
    return "\n".join(table.markdown for table in tables).rstrip("\n")


def figures(entries: Sequence[Entry], report: Path, card: Path) -> str:
    """Links from the card to the figures that lie in the report's folder."""
    benchmarks = dict.fromkeys(entry.result.benchmark for entry in entries)
    paths = [(report / f"{benchmark}-{name}.png", name) for benchmark in benchmarks for name in FIGURES]
    links = [
        f"![{MEANINGS[name]}]({Path(os.path.relpath(path, card.parent)).as_posix()})"
        for path, name in paths
        if path.is_file()
    ]
    return "\n\n".join(links)


def zero_shot(facts: Facts, own: Sequence[Entry]) -> str:
    """For each task, how much of it the model has seen."""
    tasks = {column_with_marks(entry): facts.data.seen(entry.result.task) for entry in own}
    return markdown_table(("task", "zero-shot"), list(tasks.items()))


def where_it_hurts(entries: Sequence[Entry], own: Sequence[Entry]) -> str:
    """The tasks on which listwise reranking is below the ranking that it started from."""
    lines = []
    for entry in own:
        if entry.system.kind != "listwise":
            continue
        # An own first stage is the model's embedding: the same score by another name.
        started = ("embedding",) if entry.result.first_stage == "own" else ("embedding", "first_stage")
        lines += [
            f"* {column_with_marks(entry)}: {entry.name} {100 * entry.main:.2f}, {rival.name} {100 * rival.main:.2f}"
            for rival in entries
            if (rival.column, rival.result.benchmark) == (entry.column, entry.result.benchmark)
            and rival.system.kind in started
            and rival.model in ("", entry.model)
            and rival.main > entry.main
        ]
    if not lines:
        return "In the mean over queries it made none of the tasks above worse; single queries lose all the same."
    return "\n".join(
        ["In the mean over queries it made these tasks worse than the ranking it started from:", "", *lines]
    )


def training_data(facts: Facts) -> str:
    """The training sets with their licences."""
    rows = []
    for source in facts.data.sets:
        record = facts.data.train[source.name]
        taught = record.get("manifest", {}).get("settings", {}).get("teacher")
        labels = f"{source.labels}, then the order of {taught['model']}" if taught else source.labels
        rows.append((source.title, f"{record['slates']:,}", f"{record['documents']:,}", labels, source.licence))
    return markdown_table(("data", "slates", "documents", "labels", "licence"), rows)


def tuning(facts: Facts) -> str:
    """The training, stage by stage, and the change on the dev data."""
    runs = stages(facts.training)
    titles = [f"Training stage {number}: " for number in range(1, len(runs) + 1)] if len(runs) > 1 else [""]
    return "\n\n".join(title + _stage(run) for title, run in zip(titles, runs, strict=True))


def _stage(run: Mapping[str, Any]) -> str:
    loss = {name: value for name, value in run["loss"].items() if name.endswith("_weight") and value}
    if not loss.keys() & {"listwise_weight", "localized_weight"}:
        loss.pop("query_weight", None)  # its share in a vector that this stage does not train
    parts = ", ".join(f"{name.removesuffix('_weight')} {value:g}" for name, value in loss.items())
    frozen = "document vectors stayed as they were" if run["loss"].get("freeze_documents") else "all vectors trained"
    if run["settings"].get("prompt_adapter"):
        frozen = "only prompts trained, all other vectors stayed as they were"
    batch = run["settings"].get("per_device_train_batch_size")  # a default is not there
    steps = f"{run['steps']:,} steps" + (f" of {batch} slates" if batch else "")
    kept = f", of which the checkpoint of step {run['best_step']} was kept" if run["best_step"] is not None else ""
    head = f"{steps}{kept}; weights of the loss: {parts}; {frozen}."
    if (scale := run.get("adapter_scale")) is not None:
        head += f" The model has {scale:.0%} of the trained change of weights; *after* is with all of it."
    rows = [
        (data, f"{record['slates']}", system, f"{100 * run['before'][name]:.2f}", f"{100 * run['after'][name]:.2f}", p)
        for data, record in by_name(run["data"]["dev"]).items()
        for system, name, p in _of_systems(run, data)
    ]
    if not rows:
        return head
    table = markdown_table(("nDCG@10", "queries", "system", "before", "after", "p"), rows)
    return f"{head} On the dev data, in points, before and after it:\n\n{table}"


def _of_systems(run: Mapping[str, Any], data: str) -> Iterator[tuple[str, str, str]]:
    """Each system, its metric's name on a dev set, and the p-value of its change: a first stage has none."""
    for system in SYSTEMS:
        name = f"{data}_{system}_ndcg@10"
        value = None if system == SYSTEMS[0] else run["p_values"].get(name)
        if name in run["after"]:
            yield system, name, "" if value is None else f"{value:.4f}"


def environment(facts: Facts, entries: Sequence[Entry]) -> str:
    """The machines and versions of training and evaluation."""
    runs = [("training", run["environment"]) for run in stages(facts.training)]
    runs += [(f"evaluation, {entry.result.benchmark}", entry.result.environment) for entry in entries]
    lines = dict.fromkeys((step, *_described(found)) for step, found in runs)
    return markdown_table(("step", "hardware", "versions"), list(lines))


def _described(found: Any) -> tuple[str, str]:
    hardware = found["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{hardware['device']}, {hardware['threads']} threads", versions
