"""A model → a fingerprint: everything that its document vectors depend on, and the vectors of three texts.

An index keeps the fingerprint of the model that made it. If another model searches it, the difference has a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from e2rank_st.embedding_e2rank import RETRIEVAL_PROMPTS
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.provenance import weights_digest
from e2rank_st.search.vectors import Matrix, embed_distinct, unit_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Fingerprint", "Maker", "describe", "differences", "listwise_of"]

Maker: TypeAlias = Mapping[str, Any]  # the name of a part → its value, as JSON keeps it

# Largest 1 − cosine of a text's vectors by one model: with different batches in float32, and else.
ROUNDING = {"torch.float32": 1e-5}
COARSE_ROUNDING = 1e-3
# A short text, one that shows how case and marks are read, and one that is longer than most models embed.
PROBES = (
    "how long do fleas live",
    "Größe: 3 µm (±5 %) — «naïve» 東京 №7",
    " ".join(f"number {count}" for count in range(600)),
)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What tells whether a model gives the vectors of an index.

    Attributes:
        maker: Description of the model that made them.
        vectors: Its vectors of :data:`PROBES`, (3, D).
    """

    maker: Maker
    vectors: Matrix

    @classmethod
    def of(cls, model: SentenceTransformer) -> Fingerprint:
        """Take the fingerprint of a model."""
        return cls(describe(model), _probed(model))

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Fingerprint:
        """Read what :meth:`as_dict` gave."""
        return cls(kept["maker"], unit_rows(np.array(kept["vectors"], np.float32)))

    def as_dict(self) -> dict[str, Any]:
        """The fingerprint as JSON can hold it."""
        return {"maker": dict(self.maker), "vectors": self.vectors.tolist()}

    def check(self, model: SentenceTransformer) -> None:
        """Refuse a model that gives the probes different vectors.

        Small differences pass: those of a merged adapter, of bfloat16, or of another machine.

        Raises:
            ValueError: The vectors are different; the message names the parts of the description that differ.
        """
        found, vectors = describe(model), _probed(model)
        same_type = self.maker.get("dtype") == found["dtype"]
        allowed = ROUNDING.get(found["dtype"], COARSE_ROUNDING) if same_type else COARSE_ROUNDING
        if vectors.shape == self.vectors.shape:
            # Half the square is 1 − cosine for unit vectors.
            apart = ((vectors.astype(np.float64) - self.vectors) ** 2).sum(axis=1) / 2
            if (apart < allowed).all():
                return
        parts = differences(self.maker, found) or "nothing that can be named, such as its tokenizer"
        raise ValueError(
            f"The model does not give the vectors of this index: it differs in {parts}. "
            "Build the index again with this model, or use the model that made it."
        )


def _probed(model: SentenceTransformer) -> Matrix:
    return embed_distinct(model, PROBES, show_progress_bar=False)


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


def listwise_of(model: Any) -> ListwiseRerank:
    """The model's module of reranking; a model from the Hub has it as remote code.

    Raises:
        ValueError: The model does not have one.
    """
    for module in model.children() if hasattr(model, "children") else ():
        if hasattr(module, "rerank"):
            found: ListwiseRerank = module
            return found
    raise ValueError(f"model must be able to rerank, got {type(model).__name__}. Load it with E2Rank(name).")
