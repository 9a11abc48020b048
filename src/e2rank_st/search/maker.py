"""A model → a short description of everything that its document vectors depend on.

An index keeps the description of the model that made it. If another model searches it, the difference has a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from e2rank_st.embedding_e2rank import RETRIEVAL_PROMPTS
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.provenance import weights_digest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Maker", "describe", "differences"]

Maker: TypeAlias = Mapping[str, Any]  # the name of a part → its value, as JSON keeps it


def describe(model: SentenceTransformer) -> Maker:
    """Describe a model by its weights, its settings, and the prompt of documents.

    It takes milliseconds, because a sample of each parameter is hashed: training changes it. A different tokenizer
    beside the same weights is not seen. The query's prompt and the reranking configuration are left out, because
    document vectors do not depend on them.
    """
    chosen = next((name for name in RETRIEVAL_PROMPTS["document"] if name in model.prompts), model.default_prompt_name)
    parts = {
        "weights": weights_digest(model).hexdigest()[:16],
        "dtype": next((str(parameter.dtype) for parameter in model.parameters()), None),
        "dimension": model.get_embedding_dimension(),
        "max_seq_length": model.max_seq_length,
        "document prompt": model.prompts.get(chosen, "") if chosen else "",
    }
    for module in model.children():
        if not isinstance(module, ListwiseRerank):
            options: dict[str, Any] = getattr(module, "get_config_dict", dict)()
            parts |= {f"{type(module).__name__}.{name}": value for name, value in options.items()}
    maker: Maker = json.loads(json.dumps(parts, default=str))  # equal to what a file keeps
    return maker


def differences(maker: Maker, model: Maker) -> str:
    """Name the parts in which two descriptions differ, with their values."""
    return ", ".join(
        f"{part} ({maker.get(part)!r:.60} then, {model.get(part)!r:.60} now)"
        for part in {**maker, **model}
        if maker.get(part) != model.get(part)
    )
