"""Docstrings: the standard library's documentation, the same on every call, and without running the library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import e2rank_st.data.docstrings as docstrings_module
from e2rank_st.data.docstrings import Docstring, collect

SOURCE = '''
"""Toy module for tests."""
import sys

class Shown:
    """A class to show."""

    def method(self):
        """A method of it."""
        def inner():
            """Nothing to call from outside."""

    def _private(self):
        """Nobody else's business, ever."""

if sys.platform == "nowhere":
    def conditional():
        """Defined under a condition."""
else:
    try:
        async def conditional():
            """Another one by that name."""
    except ImportError:
        def fallback():
            """Defined when something fails."""

def brief():
    """Too brief."""

def repeated():
    """A method of it."""

def indented():
    """First line
        and more,

        indented.
    """
'''


def test_public_definitions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against private and nested things, repeated texts, and a file that stops the rest by not parsing."""
    monkeypatch.setattr(docstrings_module.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(docstrings_module.sys, "stdlib_module_names", {"toy", "_hidden", "test", "broken"})
    monkeypatch.setattr(docstrings_module, "COMPILED", ())
    (tmp_path / "toy").mkdir()
    for name in ("toy/__init__", "toy/_private", "_hidden", "test"):
        (tmp_path / f"{name}.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def")
    found = collect()
    assert found == [
        Docstring("toy", "Toy module for tests."),
        Docstring("toy.Shown", "A class to show."),
        Docstring("toy.Shown.method", "A method of it."),
        Docstring("toy.conditional", "Defined under a condition."),
        Docstring("toy.fallback", "Defined when something fails."),
        Docstring("toy.indented", "First line\nand more,\n\nindented."),
    ]
    assert found[-1].summary == "First line"
    assert found[-1].document == "toy.indented\nFirst line\nand more,\n\nindented."


def test_real_library_is_there():
    """Guards against a corpus that shrinks unnoticed: parsed, compiled, built-in, functions and methods."""
    library = collect()
    assert len(library) > 3000
    names = [docstring.name for docstring in library]
    expected = {"asyncio.tasks.gather", "shlex.split", "str.split", "collections.deque", "math.gcd", "os.listdir"}
    assert expected <= set(names)
    assert len(names) == len(set(names)) == len({docstring.text for docstring in library})
    assert all(docstring.summary for docstring in library)


def test_collecting_imports_nothing_and_always_gives_the_same():
    """Guards against modules that do something on import, and against the order of a set, which changes by process."""
    code = (
        "import sys, hashlib; from e2rank_st.data.docstrings import collect; "
        "print(hashlib.sha256(repr(collect()).encode()).hexdigest(), {'antigravity', 'this'} & set(sys.modules))"
    )
    command, environments = [sys.executable, "-c", code], [os.environ | {"PYTHONHASHSEED": seed} for seed in "12"]
    outputs = {subprocess.check_output(command, env=environment, text=True) for environment in environments}
    assert len(outputs) == 1
    assert outputs.pop().split()[1:] == ["set()"]
