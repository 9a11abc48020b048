"""A model card → its metadata checked, its Python blocks and figures found, and the card of the ``embedding`` revision.

A card is Markdown with YAML in front. The Hub reads the YAML: without it a model has no licence, is in no list and
links to no base.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from e2rank_st.checkpoints import HUB_ID
from e2rank_st.folders.check import check_size

__all__ = ["Card", "read_card"]

REQUIRED: dict[str, Any] = {
    "license": str,
    "library_name": str,
    "pipeline_tag": str,
    "base_model": (str, list),
    "tags": list,
}
LIBRARY = "sentence-transformers"
FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
PYTHON = re.compile(r"^```(?:python|py)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]+src=[\"']([^\"']+)")
FIGURES = {".jpg", ".png", ".svg"}
# What stands for the repository's own id: ours, and that of the cards which Sentence-Transformers writes.
PLACEHOLDERS = ("{{repo_id}}", "sentence_transformers_model_id")
EMBEDDING = """---
{metadata}---

# {name}, embeddings only

This revision holds the weights of [{repo_id}](https://huggingface.co/{repo_id}) and stock modules of
Sentence-Transformers: no code of its own, so no `trust_remote_code`. It embeds as the `main` revision does and cannot
rerank.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repo_id}", revision="embedding")
queries = model.encode_query(["how long do fleas live"])
documents = model.encode_document(["An adult flea lives from two to three months.", "Bread rises because of yeast."])
print(model.similarity(queries, documents))
```

The listwise reranking and the results are described on the card of the `main` revision.
"""


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        metadata: Its YAML.
    """

    text: str
    metadata: dict[str, Any]

    @property
    def base_models(self) -> list[str]:
        """The Hub ids of what the model was made from."""
        base: str | list[str] = self.metadata["base_model"]
        return [base] if isinstance(base, str) else base

    @property
    def blocks(self) -> list[str]:
        """The Python blocks below the metadata, in order."""
        return PYTHON.findall(FRONT_MATTER.sub("", self.text, count=1))

    @property
    def figures(self) -> list[str]:
        """The relative paths of its figures."""
        paths = [markdown or html for markdown, html in FIGURE.findall(self.text)]
        return list(dict.fromkeys(path for path in paths if not re.match(r"\w+:", path)))

    def embedding(self, repo_id: str) -> Card:
        """The card of the revision without code.

        Args:
            repo_id: The repository's Hub id.

        Returns:
            A card with the licence and base of this one, and an example of its own.
        """
        names = ("license", "license_name", "license_link", "library_name", "base_model")
        kept = {name: self.metadata[name] for name in names if name in self.metadata}
        metadata = {**kept, "pipeline_tag": "feature-extraction", "tags": [LIBRARY, "feature-extraction"]}
        text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
        return Card(
            EMBEDDING.format(metadata=text, repo_id=repo_id, name=repo_id.rpartition("/")[2]),
            metadata,
        )


def read_card(path: Path, repo_id: str) -> Card:
    """Read a card and check what the Hub needs to know.

    Args:
        path: The card.
        repo_id: The repository's Hub id, put in for the placeholder ``{{repo_id}}``.

    Raises:
        FileNotFoundError: There is no card.
        ValueError: It is too large, its metadata is not YAML, incomplete or wrong, or a figure is missing or elsewhere.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no card at {path}. Write one, or name one with --card.")
    check_size(path)
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, repo_id)
    card = Card(text, _metadata(text, path))
    for figure in card.figures:
        parts = PurePosixPath(figure)
        if parts.is_absolute() or ".." in parts.parts or not (path.parent / figure).is_file():
            raise ValueError(f"The card {path} shows {figure!r}, which is not a file beside or below it. Put it there.")
        if parts.suffix not in FIGURES:  # else it could take the place of a configuration
            raise ValueError(f"The card {path} shows {figure!r}; a figure is one of {', '.join(sorted(FIGURES))}.")
    return card


def _metadata(text: str, path: Path) -> dict[str, Any]:
    front = FRONT_MATTER.match(text)
    try:
        metadata = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise ValueError(f"The metadata of the card {path} is not valid YAML: {error}.") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"The card {path} has no metadata. Begin it with YAML between two lines of ---.")
    wrong = [name for name, kind in REQUIRED.items() if not metadata.get(name) or not isinstance(metadata[name], kind)]
    if wrong:
        needed = ", ".join(REQUIRED)
        raise ValueError(f"The metadata of the card {path} lacks {', '.join(wrong)}. All of {needed} are needed.")
    if metadata["library_name"] != LIBRARY:
        raise ValueError(f"The card {path} says library_name: {metadata['library_name']}; it must be {LIBRARY}.")
    bases = metadata["base_model"]
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str) or not HUB_ID.fullmatch(base):
            raise ValueError(f"The card {path} names the base_model {base!r}; it must be a Hub id (org/name).")
    return metadata
