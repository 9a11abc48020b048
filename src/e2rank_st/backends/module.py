"""Token ids → vectors, computed somewhere else, as modules of a Sentence-Transformers model.

The rest of the model stays as it is: it tokenises, builds prompts, and ranks. So ``encode``, ``rerank``, an index and
the evaluation work with such a model as with any other.

Axes: B sequences, L tokens, D dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

__all__ = ["KEY", "PROMPT_SUFFIX", "Backend", "PromptBackend"]

KEY = "E2RANK_API_KEY"  # the environment variable with a server's key
PROMPT_SUFFIX = ":prompt"  # what `e2rank serve` appends to a model's name for the one with its prompt adapter


class Backend(InputModule):
    """First module of a model: gives each sequence of token ids its vector, by :meth:`embed`.

    Args:
        tokenizer: The model's fast tokenizer.
        dimension: D.
        max_seq_length: Most tokens of a text; None if there is no limit.
    """

    save_in_root = False
    place = "server"  # where the vectors are computed: small batches would be many requests

    def __init__(self, tokenizer: Any, dimension: int, max_seq_length: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        self.dimension = dimension
        self.max_seq_length = max_seq_length

    @abstractmethod
    def embed(self, sequences: Sequence[Sequence[int]], prompt_length: int | None) -> Tensor:
        """Returns the vectors of token ids, (B, D) float32.

        Args:
            sequences: The token ids of each text, special tokens included.
            prompt_length: The number of first tokens that the pooling leaves out, if it leaves out any.
        """

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenises texts as the model's own first module does."""
        texts = self._prepend_prompt(list(inputs), prompt) if prompt else list(inputs)
        limit = {"truncation": True, "max_length": self.max_seq_length} if self.max_seq_length else {}
        tokenize: Any = self.tokenizer
        return dict(tokenize(texts, padding=True, return_tensors="pt", **limit))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding`` (B, D) to features with ``input_ids`` and ``attention_mask``, both (B, L)."""
        rows = zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
        vectors = self.embed([ids[mask].tolist() for ids, mask in rows], features.get("prompt_length"))
        return {**features, "sentence_embedding": vectors}

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.dimension

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Refuses: there are no weights here.

        Raises:
            ValueError: Always.
        """
        raise ValueError("The weights of this model are somewhere else, so it cannot be saved. Save the model there.")


class PromptBackend:
    """Stands for the adapter of a model whose prompts are embedded by another backend than its texts."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def layers(self, backbone: nn.Module | None) -> Iterator[Any]:
        """No layer of this process is adapted."""
        return iter(())

    def state(self, backbone: nn.Module | None) -> tuple[Any, ...]:
        """Nothing of it changes."""
        return ()

    def applied(self, transformer: nn.Module, backbone: nn.Module | None) -> nn.Module:
        """Returns the backend of prompts."""
        return self.backend
