"""A model folder → nothing, or a refusal of a model that would keep the loading process busy for ever.

The files may all be sound: a configuration with ten million layers, or a chat template that loops for minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from e2rank_st.publishing.inspection import weight_names
from e2rank_st.publishing.sandbox import MEMORY, probe
from e2rank_st.storage import read_json

__all__ = ["check_effort"]

# Names of numbers of parts, each of which has weights of its own.
COUNTS = re.compile(r"^(?:n|num)_.*(?:layer|block|expert|stage)|(?:layers|blocks|experts|stages)$")
MOST_WITHOUT_WEIGHTS = 1024  # no work to speak of
SECONDS = 120.0  # for the import of transformers, mostly
TEXTS = [
    "how long do fleas live",
    "A flea lives 100 days. " * 50,
    "a" * 1000,
    " " * 1000,
    "Br\u00f6tchen! \u8df3\u86a4" * 50,
]
tried: set[str] = set()  # hashes of the tokenizers that passed, since a process takes seconds to start


def check_effort(folder: Path) -> None:
    """Refuse a model folder that cannot be loaded in reasonable time.

    Args:
        folder: The folder, inspected.

    Raises:
        ValueError: The configuration has more parts than the weights, or the tokenizer does not come to an end.
        OSError: A file cannot be read.
    """
    allowed = max(MOST_WITHOUT_WEIGHTS, len(weight_names(folder)))
    for name, value in _counts(read_json(folder / "config.json")):
        if value > allowed:
            raise ValueError(
                f"config.json says {name}={value}, but there are only {len(weight_names(folder))} weights. "
                "Correct it, or save the model again."
            )
    paths = [folder / "tokenizer.json", folder / "tokenizer_config.json", folder / "chat_template.jinja"]
    digest = sha256(b"".join(sha256(path.read_bytes()).digest() for path in paths if path.is_file())).hexdigest()
    if digest in tried:
        return
    job = {"tasks": ["tokenizer"], "main": str(folder.resolve()), "texts": TEXTS, "memory": MEMORY}
    with TemporaryDirectory() as cache:
        _, problem = probe({**job, "hidden": [], "visible": [], "path": []}, Path(cache), SECONDS)
    if problem:
        raise ValueError(
            f"The tokenizer of {folder} or its chat template does not work: {problem}. Look at tokenizer_config.json, "
            "tokenizer.json and chat_template.jinja."
        )
    tried.add(digest)


def _counts(values: Any) -> Iterator[tuple[str, int]]:
    """The numbers of parts in a configuration, at any depth."""
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, (dict, list)):
            yield from _counts(value)
        elif isinstance(value, int) and isinstance(name, str) and COUNTS.search(name):
            yield name, value
