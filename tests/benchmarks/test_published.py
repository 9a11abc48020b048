"""The paper's own setting: the texts that reach the model, what the result says of it, and that nothing mixes it up."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from torch import Tensor

from e2rank_st import E2Rank
from e2rank_st.benchmarks import reranking
from e2rank_st.benchmarks.candidates import PUBLISHED_WORDS
from e2rank_st.benchmarks.models import Subject
from e2rank_st.benchmarks.report import make_tables
from e2rank_st.benchmarks.reranking import Options, run
from e2rank_st.benchmarks.results import Result, read_entries
from e2rank_st.benchmarks.tasks import find_tasks
from e2rank_st.cli import evaluate
from tests import ROOT

LONG = "  a\tb\n\nc  d " * 300  # 1,200 words
QUERY = "why " * 1100 + "so?"
DOCUMENTS = [LONG + "after the end", *(f"Fact {number}:\n it   is {number}." for number in range(24))]
README = ROOT / "recipes" / "paper" / "README.md"


def words(text: str) -> str:
    return " ".join(text.split()[:PUBLISHED_WORDS])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy dl19 whose last query is not judged."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "rerank").mkdir()
    lines = []
    for query, text in enumerate([QUERY, "how many?", "who?"]):
        hits = [
            {"content": document, "qid": str(query), "docid": str(place), "rank": place + 1, "score": -place}
            for place, document in enumerate(DOCUMENTS)
        ]
        lines.append(json.dumps({"query": text, "hits": hits}) + "\n")
    (folder / "rerank" / "dl19_bm25_top100.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "rerank" / "dl19_qrels.txt").write_text("0 0 3 2\n1 0 5 2\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def measured(data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[str], Path]:
    """The result of the paper's setting, the texts that went through the model, and the file."""
    model, texts = E2Rank(str(checkpoint), device="cpu"), []

    def note(_: Any, args: tuple[dict[str, Tensor], ...]) -> None:
        ids, mask = args[0]["input_ids"], args[0]["attention_mask"].bool()
        texts.extend(model.tokenizer.decode(row[present]) for row, present in zip(ids, mask, strict=True))

    model[0].register_forward_pre_hook(note)
    output = tmp_path_factory.mktemp("output")
    options = {"data_dir": data, "output_dir": output, "embedding_queries": 0, "systems": ["embedding", "listwise"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reranking, "load", lambda *args, **kwargs: Subject(model, "org/toy", "main"))
        (result,) = run(Options(published=True, tasks=["dl19"], **options))
    assert isinstance(result, Result), result
    return result, texts, reranking.result_path(Options(tasks=["dl19"], **options), result)


def test_the_model_reads_what_the_paper_gave_it(measured: tuple[Result, list[str], Path]):
    """Guards against figures that cannot be compared: other documents, another order or K, a cut query or document."""
    _, texts, _ = measured
    embedded = {words(document) + "<|endoftext|>" for document in DOCUMENTS}
    prompts = [text for text in texts if text.startswith("<|im_start|>")]
    others = set(texts) - set(prompts)
    assert embedded < others, "documents are embedded whole, after they were rewritten"
    assert all(text.startswith("Instruct: Given a web search query, retrieve") for text in others - embedded)
    shown = "\n".join(f"[{place}] {words(document)}" for place, document in enumerate(DOCUMENTS[:20], 1))
    instruction = "Given a web search query and some relevant documents, rerank the documents that answer the query"
    tail = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert set(prompts) == {
        f"<|im_start|>user\n{instruction}:\nDocuments:\n{shown}\nSearch Query: {query}{tail}"
        for query in (QUERY, "how many?")
    }


def test_a_published_result_says_so_and_stands_apart(
    measured: tuple[Result, list[str], Path], data: Path, checkpoint: Path
):
    """Guards against a table in which the paper's setting and ours stand in one column, or replace each other."""
    result, _, path = measured
    assert (result.queries, result.first_stage, path.name) == (2, "bm25-published", "dl19-bm25-published.json")
    names = ("published", "instructions", "candidate_order", "query_weight", "num_prompt_documents", "judged_only")
    assert [result.settings[name] for name in names] == [True, "model", "given", 0.0, (20,), True]
    options = {"data_dir": data, "output_dir": path.parent, "model": str(checkpoint), "device": "cpu"}
    (own,) = run(Options(tasks=["dl19"], judged_only=True, systems=["embedding"], embedding_queries=0, **options))
    assert (own.first_stage, own.settings["published"], own.settings["instructions"]) == ("bm25", False, "task")
    (table, *_) = make_tables(read_entries([path.parent]), ["scores"])
    assert table.header[2:] == ("DL19 bm25-published †", "DL19 bm25 †", "mean")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instructions": "task"}, "has instructions='model', got 'task'"),
        ({"candidate_order": "similarity"}, "has candidate_order='given', got 'similarity'"),
        ({"query_weight": 0.5}, "has query_weight=0.0, got 0.5"),
        ({"own_first_stage": True, "data_dir": Path("data")}, "leave the own first stage out"),
    ],
)
def test_another_setting_is_not_the_published_one(options: dict[str, Any], message: str):
    """Guards against a result called published that was measured in another way; K may differ, and is in the result."""
    with pytest.raises(ValueError, match=message):
        Options(tasks=["dl19"], published=True, **options)
    assert Options(tasks=["dl19"], published=True, num_prompt_documents=[5]).num_prompt_documents == [5]


def test_the_recipe_measures_the_papers_tables():
    """Guards against a command that does not run, leaves a task out, or measures another setting."""
    text = README.read_text(encoding="utf-8")
    commands = re.findall(r"e2rank eval (rerank .+?)(?: &&|\n(?! )|$)", text.replace("\\\n", " "))
    parser, tasks = typer.main.get_command(evaluate.app).commands["rerank"], []
    for command in commands:
        given = parser.make_context("rerank", shlex.split(command)[1:]).params
        assert given["published"] and given["model"].startswith("Alibaba-NLP/E2Rank-")
        tasks += find_tasks(given["tasks"].split(","))
    assert tasks == find_tasks(["dl19", "dl20", "beir", "bright"])
