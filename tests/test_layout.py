"""The package is one house: imports go one way, and no room outgrows its size."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2rank_st.modeling_e2rank import SOURCES
from tests import ROOT

PACKAGE = ROOT / "src" / "e2rank_st"
# A part may import itself and those before it.
ORDER = (
    "documents_e2rank", "adapter_e2rank", "arguments_e2rank", "prompts_e2rank", "embedding_e2rank", "passages_e2rank",
    "ranking_e2rank", "modeling_e2rank",
    "storage", "console", "provenance", "bundled", "checkpoints", "folders", "adapters", "wiring", "precision", "data",
    "backends", "search", "model", "loading", "evaluation", "training", "labelling", "benchmarks", "publishing",
    "serving", "integrations", "cli",
)  # fmt: skip
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """The folder, or the module at the root, that a dotted name is in."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[str]:
    """Names of our modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:  # of the remote code's files, which lie side by side
            yield f"e2rank_st.{node.module}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "e2rank_st":
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if module_file(name) else str(node.module) for name in candidates)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "e2rank_st")


def module_file(name: str) -> Path | None:
    path = ROOT / "src" / Path(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def test_imports_go_one_way():
    """Guards against a library that imports the command line, and against folders that know each other."""
    for path in MODULES:
        own = part(f"e2rank_st.{path.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}")
        if own == "__init__":
            continue
        for name in imports(path):
            if name not in ("e2rank_st", "e2rank_st.__version__"):
                assert ORDER.index(part(name)) <= ORDER.index(own), (path.relative_to(ROOT), name)


def test_no_circle_of_imports():
    """Guards against two modules that need each other, also where only types are imported."""
    graph = {path: {module_file(name) for name in imports(path)} - {path} for path in MODULES}
    graph[PACKAGE / "__init__.py"] = set()  # it names modules, and imports them on first use
    done: set[Path] = set()
    while free := {path for path, needed in graph.items() if path not in done and needed <= done | {None}}:
        done |= free
    assert not graph.keys() - done, sorted(path.name for path in graph.keys() - done)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_and_functions_stay_readable(path: Path):
    """Guards against the file that everything ends up in, and the function that nobody reads to its end."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_few_modules_stand_at_the_root():
    """Guards against a warehouse: what serves one role belongs in its folder.

    Files of the remote code do not count: they have to lie beside each other, as in the root of a Hub repository.
    """
    assert len({path.name for path in PACKAGE.glob("*.py")} - set(SOURCES)) <= 10


def test_remote_code_needs_nothing_else():
    """Guards against remote code that imports this package, or a file that a model folder lacks."""
    for name in SOURCES:
        text = (PACKAGE / name).read_text(encoding="utf-8")
        assert {f"{part.rpartition('.')[2]}.py" for part in imports(PACKAGE / name)} <= set(SOURCES)
        assert "e2rank_st." not in text.replace(":class:`~e2rank_st.", ""), name
