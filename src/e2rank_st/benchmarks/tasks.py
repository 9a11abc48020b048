"""The paper's reranking benchmarks and our dev sets: a frozen row a task, with instructions and where its files are.

Instructions of the benchmarks are those that the public evaluation code of the released checkpoints has for each task,
with its slips of the pen mended. Published scores were taken with the model's default instruction all the same (the
code never set the others in listwise mode), so both can be asked for. Public names only; where a file has no known
public place, the row says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

__all__ = ["BENCHMARKS", "HUB_REPOSITORY", "TASKS", "Task", "find_tasks"]

# Hub data set of the authors: "{first stage}/{hub_name}_top100.jsonl" and "topics_and_qrels/qrels.{hub_qrels}.txt".
HUB_REPOSITORY = "liuqi6777/retrieval_results"
# Hub data set whose configuration "examples" says, by task and query, which documents BRIGHT leaves out.
EXCLUSIONS_REPOSITORY = "xlangai/BRIGHT"
WEB_RETRIEVAL = "Given a web search query, retrieve relevant passages that answer the query"
WEB_LISTWISE = "Given a web search query and some relevant documents, rerank the documents that answer the query"


@dataclass(frozen=True)
class Task:
    """A test set, and how a model is told about it.

    Attributes:
        name: What ``--tasks`` calls it; local files are ``rerank/{name}_{first stage}_top100.jsonl[.gz]``,
            ``rerank/{name}_qrels.txt`` and, where documents are left out, ``rerank/{name}_excluded.jsonl``.
        title: What tables call it.
        benchmark: ``dl``, ``beir``, ``bright`` or ``dev``; empty for a set of the user's own.
        retrieval_instruction: What a query is embedded with, for models whose query prompt has an instruction; None
            for the model's own.
        listwise_instruction: What a listwise prompt starts with, likewise.
        hub_name: Name of the first stage's results in :data:`HUB_REPOSITORY`; None where they are not there.
        hub_qrels: Name of the judgements there.
        folder: Name of the local folder in BEIR's layout, for ``--own-first-stage``; by default ``name``.
        split: Whose judgements there.
        sample: How many of its judged queries, drawn by a fixed seed, are the task; None for all.
        judged_groups: Whether the corpus is only the groups of documents, the id before ``#``, that a judged one of the
            split is of: the articles of a split, where the folder holds those of all splits.
        relevant_from: Least grade that MAP, MRR and recall count as relevant; nDCG uses the grades themselves.
        exclusions: Name in :data:`EXCLUSIONS_REPOSITORY` of documents that are left out, by query.
        note: What is not public, or not where one would look.
    """

    name: str
    title: str
    benchmark: str = ""
    retrieval_instruction: str | None = None
    listwise_instruction: str | None = None
    hub_name: str | None = None
    hub_qrels: str | None = None
    folder: str = ""
    split: str = "test"
    sample: int | None = None
    judged_groups: bool = False
    relevant_from: int = 1
    exclusions: str | None = None
    note: str = ""


def _deep_learning(year: int, *, on_hub: bool) -> Task:
    """A passage ranking task of TREC Deep Learning; NIST calls a passage relevant from grade 2."""
    return Task(
        name=f"dl{year}",
        title=f"DL{year}",
        benchmark="dl",
        retrieval_instruction=WEB_RETRIEVAL,
        listwise_instruction=WEB_LISTWISE,
        hub_name=f"dl{year}" if on_hub else None,
        hub_qrels=f"dl{year}-passage" if on_hub else None,
        relevant_from=2,
        note=""
        if on_hub
        else "No first-stage results with text at a known public place: retrieve from MS MARCO v2 passages "
        f"yourself. Judgements: qrels.dl{year}-passage.txt of github.com/castorini/anserini-tools.",
    )


def _beir(
    name: str, title: str, qrels: str, retrieval: str, listwise: str, *, folder: str = "", note: str = ""
) -> Task:
    return Task(
        name=name,
        title=title,
        benchmark="beir",
        retrieval_instruction=retrieval,
        listwise_instruction=listwise,
        hub_name=name,
        hub_qrels=f"beir-v1.0.0-{qrels}.test",
        folder=folder,
        note=note,
    )


def _bright(name: str, title: str, kind: str, documents: str, topic: str, *, exclusions: str | None = None) -> Task:
    """A subset of BRIGHT: ``topic`` names its queries, each a ``kind`` that ``documents`` help with."""
    return Task(
        name=f"bright-{name}",
        title=title,
        benchmark="bright",
        retrieval_instruction=f"Given {topic}, retrieve relevant {documents} that help answer the {kind}",
        listwise_instruction=f"Given {topic} and some relevant {documents}, "
        f"rerank the {documents} that help answer the {kind}",
        hub_name=f"bright-{name}",
        hub_qrels=f"bright-{name}.test",
        exclusions=exclusions,
    )


def _dev(
    name: str, title: str, retrieval: str, listwise: str, *, sample: int | None = None, judged_groups: bool = False
) -> Task:
    """The dev split of a folder in BEIR's layout, which settings may be chosen by."""
    return Task(
        name=f"{name}-dev",
        title=title,
        benchmark="dev",
        retrieval_instruction=retrieval,
        listwise_instruction=listwise,
        folder=name,
        split="dev",
        sample=sample,
        judged_groups=judged_groups,
        note="No first-stage results with text: retrieve with --own-first-stage from a folder in BEIR's layout.",
    )


NFCORPUS = (
    "Given a question, retrieve relevant documents that best answer the question",
    "Given a question and some relevant documents, rerank the documents that best answer the query",
)
CORPUS_NOT_PUBLIC = "The documents need a licence; first-stage results with text are public, the corpus is not."

_ROWS = (
    *(_deep_learning(year, on_hub=year < 21) for year in range(19, 24)),
    _beir(
        "covid",
        "Covid",
        "trec-covid",
        "Given a query on COVID-19, retrieve documents that answer the query",
        "Given a query on COVID-19 and some relevant documents, rerank the documents that answer the query",
        folder="trec-covid",
    ),
    _beir(
        "nfc",
        "NFCorpus",
        "nfcorpus",
        *NFCORPUS,
        folder="nfcorpus",
    ),
    _beir(
        "touche",
        "Touche",
        "webis-touche2020",
        "Given a question, retrieve detailed and persuasive arguments that answer the question",
        "Given a question and some arguments, rerank the detailed and persuasive arguments that answer the question",
        folder="webis-touche2020",
    ),
    _beir(
        "dbpedia",
        "DBPedia",
        "dbpedia-entity",
        "Given a query, retrieve relevant entity descriptions from DBPedia",
        "Given a query and some relevant entities, rerank the best descriptions from DBPedia",
        folder="dbpedia-entity",
    ),
    _beir(
        "scifact",
        "SciFact",
        "scifact",
        "Given a scientific claim, retrieve documents that support or refute the claim",
        "Given a scientific claim and some relevant documents, "
        "rerank the documents that best support or refute the claim",
    ),
    _beir(
        "signal",
        "Signal",
        "signal1m",
        "Given a news article title, retrieve relevant tweets",
        "Given a news article title and some relevant tweets, rerank the tweets that are most relevant to the query",
        folder="signal1m",
        note=CORPUS_NOT_PUBLIC,
    ),
    _beir(
        "news",
        "News",
        "trec-news",
        "Given a news headline, retrieve relevant news articles that provide important context or background "
        "information",
        "Given a news article title and some relevant documents, rerank the documents that best answer the query",
        folder="trec-news",
        note=CORPUS_NOT_PUBLIC,
    ),
    _beir(
        "robust04",
        "Robust04",
        "robust04",
        "Given a newswire query, retrieve relevant news articles that address the query",
        WEB_LISTWISE,
        note=CORPUS_NOT_PUBLIC,
    ),
    _bright("biology", "Biology", "post", "passages", "a biology post"),
    _bright("earth-science", "Earth Science", "post", "passages", "an earth science post"),
    _bright("economics", "Economics", "post", "passages", "an economics post"),
    _bright("psychology", "Psychology", "post", "passages", "a psychology post"),
    _bright("robotics", "Robotics", "post", "passages", "a robotics post"),
    _bright("stackoverflow", "StackOverflow", "post", "passages", "a StackOverflow post"),
    _bright("sustainable-living", "Sustainable Living", "post", "passages", "a sustainable living post"),
    _bright("leetcode", "LeetCode", "problem", "examples", "a coding problem", exclusions="leetcode"),
    _bright("pony", "Pony", "question", "passages", "a question about the Pony programming language"),
    _bright("aops", "AoPS", "problem", "examples", "a math problem", exclusions="aops"),
    _bright(
        "theoremqa-questions",
        "TheoremQA questions",
        "problem",
        "examples",
        "a math problem",
        exclusions="theoremqa_questions",
    ),
    _bright(
        "theoremqa-theorems",
        "TheoremQA theorems",
        "problem",
        "theorems",
        "a math problem",
        exclusions="theoremqa_theorems",
    ),
    _dev("nfcorpus", "NFCorpus dev", *NFCORPUS),
    _dev(
        "squad",
        "SQuAD dev, 1000 queries",
        "Given a question, retrieve paragraphs that answer the question",
        "Given a question and some paragraphs, rerank the paragraphs that answer the question",
        sample=1000,
        judged_groups=True,
    ),
    _dev(
        "mediqa",
        "MEDIQA dev",
        "Given a health question, retrieve answers that a doctor would approve of",
        "Given a health question and some answers, rerank the answers that a doctor would approve of",
    ),
)
TASKS: Mapping[str, Task] = MappingProxyType({row.name: row for row in _ROWS})
BENCHMARKS = tuple(dict.fromkeys(row.benchmark for row in _ROWS))


def find_tasks(names: Iterable[str]) -> list[Task]:
    """The rows with these names; the name of a benchmark stands for all of its tasks.

    Raises:
        ValueError: A name is unknown; the message has the nearest one.
    """
    found: dict[str, Task] = {}
    for name in names:
        rows = [row for row in _ROWS if name in (row.name, row.benchmark)]
        if not rows:
            known = [*BENCHMARKS, *TASKS]
            nearest = get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"Unknown task {name!r}; did you mean {nearest!r}? Known: {', '.join(known)}.")
        found |= {row.name: row for row in rows}
    return list(found.values())
