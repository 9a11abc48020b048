"""The known checkpoints and their wiring into a model, one frozen row for each family; and what may name a model.

A plain transformers checkpoint does not describe its pooling, the end of a text, or the form of its listwise prompt.
The rows here do. A model that this package saved has all of that in its own folder, and does not need a row.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from e2rank_st.bundled import NAMES

__all__ = [
    "CHECKPOINTS", "HUB_ID", "MODEL_ID", "UNTRAINED", "Checkpoint", "check_name", "find_checkpoint",
    "instruction_template", "name_of_model",
]  # fmt: skip

MODEL_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # of the Hub; Sentence-Transformers adds its own org to a bare name
INSTRUCTED = re.compile(r"(Instruct: ).*?(\n ?Query: ?)", re.DOTALL)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# The reranking of a model that was not trained on listwise prompts: a plain text of query and nearest documents.
UNTRAINED: Mapping[str, Any] = {
    "prompt_format": "encoder",
    "num_prompt_documents": 3,
    "max_prompt_tokens": 320,
    "max_query_tokens": 128,
    "candidate_order": "similarity",
    # Half of the final vector stays the query's own. The prompt alone could lead anywhere, and with the query it works
    # like Rocchio's pseudo-relevance feedback.
    "query_weight": 0.5,
}


@dataclass(frozen=True)
class Checkpoint:
    """The wiring of a family of checkpoints.

    Args:
        preset: The name of this row.
        repositories: Hub ids of the family's members.
        architectures: Architectures (``config.json``) that the row fits if the name is unknown.
        pooling_mode: See :class:`~e2rank_st.modeling_e2rank.E2RankPooling`.
        max_seq_length: Most tokens of a document or query, special tokens included.
        eos_token: Token that the tokenizer appends to every text, or None.
        query_prompt: Text before a query in retrieval.
        listwise: Arguments of :class:`~e2rank_st.modeling_e2rank.ListwiseRerank`.
        positions: Most tokens that the family takes at a time.
        reranks: Whether the family was trained to rerank. A family that was not still embeds, and can be trained to.
    """

    preset: str
    repositories: tuple[str, ...]
    architectures: tuple[str, ...]
    pooling_mode: str
    max_seq_length: int
    eos_token: str | None = None
    query_prompt: str = ""
    listwise: Mapping[str, Any] = field(default_factory=dict)
    positions: int = 32_768
    reranks: bool = True


# Formats, EOS and limits are from the released evaluation code and model cards (arXiv 2510.22733).
RELEASED = Checkpoint(
    preset="e2rank",
    repositories=("Alibaba-NLP/E2Rank-0.6B", "Alibaba-NLP/E2Rank-4B", "Alibaba-NLP/E2Rank-8B"),
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    pooling_mode="lasttoken",
    max_seq_length=1024,
    eos_token="<|endoftext|>",
    query_prompt="Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
    listwise={"prompt_format": "evaluation", "num_prompt_documents": 20},
)
CHECKPOINTS = (
    RELEASED,
    # Stage I alone: the same texts and vectors, without training on listwise prompts.
    replace(
        RELEASED,
        preset="e2rank-embedding",
        repositories=tuple(f"{name}-Embedding-Only" for name in RELEASED.repositories),
        architectures=(),
        reranks=False,
    ),
    # The base of the bundled model as a plain transformers checkpoint: a bidirectional encoder.
    Checkpoint(
        preset="minilm",
        repositories=("sentence-transformers/all-MiniLM-L6-v2",),
        architectures=("BertModel",),
        pooling_mode="mean",
        max_seq_length=256,
        listwise=UNTRAINED,
        positions=512,
        reranks=False,
    ),
)


def find_checkpoint(
    preset: str | None = None, repository: str | None = None, architectures: Sequence[str] = ()
) -> Checkpoint:
    """Find the row by its preset, or else by the repository, or else by the architecture.

    Args:
        preset: A ``preset`` of :data:`CHECKPOINTS`.
        repository: A Hub id.
        architectures: ``architectures`` of the checkpoint's ``config.json``.

    Raises:
        ValueError: No row fits; the message lists the presets.
    """
    if preset is not None:
        found = [row for row in CHECKPOINTS if row.preset == preset]
    else:
        found = [row for row in CHECKPOINTS if repository in row.repositories]
        found += [row for row in CHECKPOINTS if set(architectures) & set(row.architectures)]
    if found:
        return found[0]
    presets = ", ".join(repr(row.preset) for row in CHECKPOINTS)
    if preset is not None:
        raise ValueError(f"Unknown preset {preset!r}. Known presets: {presets}.")
    raise ValueError(
        f"No known checkpoint is called {repository!r} or has the architecture {list(architectures)}. "
        f"Choose its wiring: E2Rank({repository!r}, preset=...) with one of {presets}."
    )


def instruction_template(prompt: str | None) -> str | None:
    """The query prompt with the field ``{instruction}``, if it has an instruction that another may replace."""
    match = INSTRUCTED.fullmatch(prompt or "")
    return f"{match[1]}{{instruction}}{match[2]}" if match else None


def name_of_model(name: Any) -> str:
    """Return a name or path as a string.

    Raises:
        ValueError: It is something else, or empty.
    """
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise ValueError(f"Got the model {name!r:.80}, which is neither a folder here nor a Hub id (org/name).")
    return str(os.fspath(name))


def check_name(name: str) -> None:
    """Check that a name can belong to a model; only loading shows whether the Hub has it.

    Raises:
        ValueError: The name is neither a folder nor a Hub id.
    """
    if name not in NAMES and not (name and Path(name).is_dir()) and not MODEL_ID.fullmatch(name):
        known = ", ".join(map(repr, NAMES))
        raise ValueError(
            f"Got the model {name!r}, which is neither a folder here nor a Hub id (org/name); give one, or {known}."
        )
