"""A model folder → nothing, or a refusal of a tokenizer that would keep the loading process busy for ever.

All its files may be sound, and its chat template loop for minutes.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from e2rank_st.publishing.sandbox import MEMORY, probe

__all__ = ["check_effort"]

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
    """Refuse a model folder whose tokenizer and chat template cannot be used in reasonable time.

    Args:
        folder: The folder, inspected.

    Raises:
        ValueError: They fail, or do not come to an end.
        OSError: A file cannot be read.
    """
    paths = sorted(path for pattern in ("*.json", "*.jinja", "*.txt") for path in folder.glob(pattern))
    digest = sha256(b"".join(sha256(path.read_bytes()).digest() for path in paths)).hexdigest()
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
