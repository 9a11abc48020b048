"""The paper's reranking benchmarks and our dev sets: a frozen row a task, with its instructions and its files.

The public evaluation code of the released checkpoints has an instruction for each task; these are they, with slips of
the pen mended. That code never set them in listwise mode, so published scores are those of the model's default
instruction. Both can be asked for. A row says so where a file has no known public place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

__all__ = ["BENCHMARKS", "HUB_REPOSITORY", "TASKS", "Task", "find_tasks"]

# Hub data set of the authors: "{first stage}/{hub_name}_top100.jsonl" and "topics_and_qrels/qrels.{hub_qrels}.txt".
HUB_REPOSITORY = "liuqi6777/retrieval_results"
# Hub data set whose configuration "examples" lists, by task and query, the documents that BRIGHT leaves out.
EXCLUSIONS_REPOSITORY = "xlangai/BRIGHT"
WEB_RETRIEVAL = "Given a web search query, retrieve relevant passages that answer the query"
WEB_LISTWISE = "Given a web search query and some relevant documents, rerank the documents that answer the query"
NFCORPUS = (
    "Given a question, retrieve relevant documents that best answer the question",
    "Given a question and some relevant documents, rerank the documents that best answer the query",
)
CORPUS_NOT_PUBLIC = "The documents need a licence; first-stage results with text are public, the corpus is not."


@dataclass(frozen=True)
class Task:
    """A test set and its instructions.

    Attributes:
        name: Its name for ``--tasks``. Local files are ``rerank/{name}_{first stage}_top100.jsonl[.gz]``,
            ``rerank/{name}_qrels.txt`` and, where documents are left out, ``rerank/{name}_excluded.jsonl``.
        title: Its name in tables.
        benchmark: ``dl``, ``beir``, ``bright`` or ``dev``; empty for a set of the user's own.
        retrieval_instruction: For models whose query prompt has an instruction; None for the model's own.
        listwise_instruction: For models whose listwise prompt has an instruction; None for the model's own.
        hub_name: Name of the first stage's results in :data:`HUB_REPOSITORY`; None where they are not there.
        hub_qrels: Name of the judgements there.
        folder: Name of the local folder in BEIR's layout, for ``--own-first-stage``; by default ``name``.
        split: Whose judgements there.
        sample: How many of its judged queries, drawn by a fixed seed, are the task; None for all.
        judged_groups: Whether the corpus is only the groups of documents (the id before ``#``) with a judged one in the
            split: its articles, where the folder holds the articles of all splits.
        relevant_from: Least grade that MAP, MRR and recall count as relevant; nDCG uses the grades themselves.
        exclusions: Name in :data:`EXCLUSIONS_REPOSITORY` of documents that are left out, by query.
        note: Where to find data that is not public.
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


def _deep_learning(year: int) -> Task:
    """A passage ranking task of TREC Deep Learning; NIST calls a passage relevant from grade 2."""
    on_hub = {"hub_name": f"dl{year}", "hub_qrels": f"dl{year}-passage"}
    elsewhere = {
        "note": "The Hub holds no first-stage results with text: recipes/bundled/data.md says what is "
        f"public, and where. Judgements: qrels.dl{year}-passage.txt of github.com/castorini/anserini-tools."
    }
    files: dict[str, Any] = on_hub if year < 21 else elsewhere
    return Task(f"dl{year}", f"DL{year}", "dl", WEB_RETRIEVAL, WEB_LISTWISE, relevant_from=2, **files)


def _beir(name: str, title: str, folder: str, retrieval: str, listwise: str, note: str = "") -> Task:
    qrels = f"beir-v1.0.0-{folder}.test"
    return Task(name, title, "beir", retrieval, listwise, name, qrels, folder=folder, note=note)


def _bright(name: str, title: str, kind: str, documents: str, topic: str, exclusions: str | None = None) -> Task:
    """A subset of BRIGHT: ``topic`` names its queries, each a ``kind`` that ``documents`` help with."""
    name, helpful = f"bright-{name}", f"{documents} that help answer the {kind}"
    retrieval = f"Given {topic}, retrieve relevant {helpful}"
    listwise = f"Given {topic} and some relevant {documents}, rerank the {helpful}"
    return Task(name, title, "bright", retrieval, listwise, name, f"{name}.test", exclusions=exclusions)


def _dev(name: str, title: str, retrieval: str, listwise: str, **options: Any) -> Task:
    """The dev split of a folder in BEIR's layout, which settings may be chosen by."""
    note = "No first-stage results with text: retrieve with --own-first-stage from a folder in BEIR's layout."
    return Task(f"{name}-dev", title, "dev", retrieval, listwise, folder=name, split="dev", note=note, **options)


_ROWS = (
    *map(_deep_learning, range(19, 24)),
    _beir(
        "covid", "Covid", "trec-covid",
        "Given a query on COVID-19, retrieve documents that answer the query",
        "Given a query on COVID-19 and some relevant documents, rerank the documents that answer the query",
    ),
    _beir("nfc", "NFCorpus", "nfcorpus", *NFCORPUS),
    _beir(
        "touche", "Touche", "webis-touche2020",
        "Given a question, retrieve detailed and persuasive arguments that answer the question",
        "Given a question and some arguments, rerank the detailed and persuasive arguments that answer the question",
    ),
    _beir(
        "dbpedia", "DBPedia", "dbpedia-entity",
        "Given a query, retrieve relevant entity descriptions from DBPedia",
        "Given a query and some relevant entities, rerank the best descriptions from DBPedia",
    ),
    _beir(
        "scifact", "SciFact", "scifact",
        "Given a scientific claim, retrieve documents that support or refute the claim",
        "Given a scientific claim and some relevant documents, "
        "rerank the documents that best support or refute the claim",
    ),
    _beir(
        "signal", "Signal", "signal1m",
        "Given a news article title, retrieve relevant tweets",
        "Given a news article title and some relevant tweets, rerank the tweets that are most relevant to the query",
        CORPUS_NOT_PUBLIC,
    ),
    _beir(
        "news", "News", "trec-news",
        "Given a news headline, retrieve relevant news articles that provide important context or background "
        "information",
        "Given a news article title and some relevant documents, rerank the documents that best answer the query",
        CORPUS_NOT_PUBLIC,
    ),
    _beir(
        "robust04", "Robust04", "robust04",
        "Given a newswire query, retrieve relevant news articles that address the query",
        WEB_LISTWISE,
        CORPUS_NOT_PUBLIC,
    ),
    _bright("biology", "Biology", "post", "passages", "a biology post"),
    _bright("earth-science", "Earth Science", "post", "passages", "an earth science post"),
    _bright("economics", "Economics", "post", "passages", "an economics post"),
    _bright("psychology", "Psychology", "post", "passages", "a psychology post"),
    _bright("robotics", "Robotics", "post", "passages", "a robotics post"),
    _bright("stackoverflow", "StackOverflow", "post", "passages", "a StackOverflow post"),
    _bright("sustainable-living", "Sustainable Living", "post", "passages", "a sustainable living post"),
    _bright("leetcode", "LeetCode", "problem", "examples", "a coding problem", "leetcode"),
    _bright("pony", "Pony", "question", "passages", "a question about the Pony programming language"),
    _bright("aops", "AoPS", "problem", "examples", "a math problem", "aops"),
    _bright(
        "theoremqa-questions", "TheoremQA questions", "problem", "examples", "a math problem", "theoremqa_questions"
    ),
    _bright("theoremqa-theorems", "TheoremQA theorems", "problem", "theorems", "a math problem", "theoremqa_theorems"),
    _dev("nfcorpus", "NFCorpus dev", *NFCORPUS),
    _dev(
        "squad", "SQuAD dev, 1000 queries",
        "Given a question, retrieve paragraphs that answer the question",
        "Given a question and some paragraphs, rerank the paragraphs that answer the question",
        sample=1000,
        judged_groups=True,
    ),
    _dev(
        "mediqa", "MEDIQA dev",
        "Given a health question, retrieve answers that a doctor would approve of",
        "Given a health question and some answers, rerank the answers that a doctor would approve of",
    ),
    _dev(
        "healthver", "HealthVer dev",
        "Given a health claim, retrieve abstracts that support or refute the claim",
        "Given a health claim and some abstracts, rerank the abstracts that support or refute the claim",
    ),
)  # fmt: skip
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
