"""The running Python's standard library → its docstrings, as a few thousand short texts.

They are a good corpus for a demonstration. Every machine has them, people wrote them, and a reader can judge a result
at sight. The library's Python files are parsed, not imported: importing some of them opens windows or prints.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

__all__ = ["QUERIES", "Docstring", "collect"]

logger = logging.getLogger(__name__)

# Applications, tests and tables inside the library. Their docstrings describe nothing to call.
LEFT_OUT = frozenset({"encodings", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "turtledemo"})
# Modules with parts in C. Their docstrings are not in a Python file, and importing these modules is harmless.
COMPILED = (
    "array", "binascii", "builtins", "cmath", "collections", "datetime", "decimal", "functools", "itertools", "math",
    "os", "struct", "time", "unicodedata", "zlib",
)  # fmt: skip
QUERIES = (  # for the demo and the speed benchmark
    "how do I run several tasks at the same time and wait for all of them",
    "count how often each word occurs",
    "split a command line into words the way a shell does",
)
FEWEST_WORDS = 3  # "Return self." answers nothing, "Greatest Common Divisor." does


@dataclass(frozen=True)
class Docstring:
    """A dotted name, such as ``asyncio.tasks.gather``, and its docstring without the indentation."""

    name: str
    text: str

    @property
    def summary(self) -> str:
        """First line of the text."""
        return self.text.splitlines()[0]

    @property
    def document(self) -> str:
        """Name and text together, to be embedded."""
        return f"{self.name}\n{self.text}"


def collect() -> list[Docstring]:
    """Collect the docstrings of everything public in the standard library.

    Returns:
        Docstrings, in the same order on every call. Parsed modules come first, by name, each in the order of its
        source; then come compiled modules. Each name and each text appears once.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    for name, docstring in (*_parsed(), *_compiled()):
        text = inspect.cleandoc(docstring).strip()
        if name not in found and text not in seen and len(text.split()) >= FEWEST_WORDS:
            found[name] = text
            seen.add(text)
    return [Docstring(name, text) for name, text in found.items()]


def _parsed() -> Iterator[tuple[str, str]]:
    """Yield name and docstring of each definition in the library's Python files."""
    library = Path(sysconfig.get_path("stdlib"))
    for module, path in sorted(_sources(library)):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, OSError) as error:
            logger.info("left out %s: %s", path, error)
            continue
        yield module, ast.get_docstring(tree) or ""
        yield from _definitions(tree, module)


def _sources(library: Path) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of each public module under the library's folder."""
    for top in sys.stdlib_module_names:
        for path in (library / f"{top}.py", *(library / top).rglob("*.py")):
            parts = path.relative_to(library).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            private = any(part.startswith("_") or part in LEFT_OUT for part in parts)
            if path.is_file() and not private:
                yield ".".join(parts), path


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the definitions of a module or class, also those under ``if`` and ``try``, but none inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{prefix}.{child.name}"
            if child.name.startswith("_"):
                continue
            yield name, ast.get_docstring(child) or ""
            if isinstance(child, ast.ClassDef):
                yield from _definitions(child, name)
        elif isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from _definitions(child, prefix)


def _compiled() -> Iterator[tuple[str, str]]:
    """Yield name and docstring of each public member of the modules with parts in C."""
    for module_name in COMPILED:
        module = importlib.import_module(module_name)
        yield module_name, module.__doc__ or ""
        for name, value in _public(module):
            qualified = name if module_name == "builtins" else f"{module_name}.{name}"
            yield qualified, value.__doc__ or ""
            if inspect.isclass(value):
                yield from ((f"{qualified}.{part}", member.__doc__ or "") for part, member in _public(value))


def _public(owner: ModuleType | type) -> Iterator[tuple[str, object]]:
    """Yield the public classes, functions and methods of a module or class, sorted by name."""
    members = vars(owner)
    for name in sorted(members.get("__all__", members)):
        value = members.get(name)
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value)):
            yield name, value
