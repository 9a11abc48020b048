"""Token ids → vectors that are known already, as many as fit into a number of bytes."""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor

__all__ = ["Tokens", "VectorCache"]

Tokens = tuple[int, ...]
ENTRY = 400  # bytes of an entry besides its vector


class VectorCache:
    """The vectors that were used last. Any number of threads may use it.

    Texts are not kept: a key is a hash of the token ids, whose own size has no bound.

    Args:
        size: Bytes of all entries; 0 keeps none.
        dimension: Values of a vector.
    """

    def __init__(self, size: int, dimension: int) -> None:
        self._vectors: LRUCache[bytes, bytes] = LRUCache(size // (4 * dimension + ENTRY))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self._vectors)

    def find(self, sequences: Iterable[Tokens], prompt_length: int | None) -> dict[Tokens, Tensor]:
        """The vectors of those sequences that are known.

        Args:
            sequences: The token ids.
            prompt_length: The number of first tokens that the pooling leaves out, if it leaves out any.
        """
        if not self._vectors.maxsize:
            return {}
        keys = {ids: _key(ids, prompt_length) for ids in sequences}
        with self._lock:
            known = {ids: self._vectors[key] for ids, key in keys.items() if key in self._vectors}
        return {ids: torch.from_numpy(np.frombuffer(vector, np.float32).copy()) for ids, vector in known.items()}

    def keep(self, vectors: Mapping[Tokens, Tensor], prompt_length: int | None) -> None:
        """Keep vectors in float32, instead of those that were not used for the longest time."""
        if self._vectors.maxsize:
            entries = {_key(ids, prompt_length): vector.numpy().tobytes() for ids, vector in vectors.items()}
            with self._lock:
                self._vectors.update(entries)


def _key(ids: Tokens, prompt_length: int | None) -> bytes:
    given = array("q", [-1 if prompt_length is None else prompt_length, *ids])
    return hashlib.blake2b(given.tobytes(), digest_size=16).digest()
