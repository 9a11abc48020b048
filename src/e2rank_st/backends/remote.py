"""An embedding model behind an OpenAI-compatible server: token ids or texts → vectors.

vLLM, TEI, Infinity, llama.cpp, ``e2rank serve`` and others speak this protocol. Prompts are built here. They go out as
token ids where the server takes them, and else as text. The package ``openai`` makes the requests, and repeats them.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e2rank_st.arguments_e2rank import natural
from e2rank_st.backends.module import Backend

try:
    import openai
except ModuleNotFoundError as error:
    raise ImportError("Remote models need openai: pip install 'e2rank-st[remote]'") from error

__all__ = ["KEY", "RemoteBackend", "Server", "ServerError"]

logger = logging.getLogger(__name__)

KEY = "E2RANK_API_KEY"
NO_KEY = "no-key-given"  # the client does not start without one
PROBES = ("how long do fleas live", "Größe: 3 µm (±5 %) — «naïve» 東京 №7")
SAME = 0.999  # cosine of two vectors of one text, in whatever precision the server computes


class ServerError(OSError):
    """A server of embeddings is not reachable, refuses, or gives an answer that is none."""


class Server:
    """The embeddings of one OpenAI-compatible server.

    Args:
        url: Its address, with or without ``/v1``.
        api_key: Its key; by default the environment variable ``E2RANK_API_KEY``. It is neither logged nor saved.
        timeout: Seconds to wait for an answer.
        max_retries: How often a failed request is repeated, after growing waits.
        concurrency: Most requests at a time that one forward pass is divided into.

    Raises:
        ValueError: A value is not allowed.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 3,
        concurrency: int = 4,
    ) -> None:
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise ValueError(f"url must be the address of a server, such as http://127.0.0.1:8000, got {url!r:.200}.")
        if not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}.")
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.timeout = timeout
        self.max_retries = natural("max_retries", max_retries)
        self.concurrency = natural("concurrency", concurrency, least=1)
        self._key = api_key if api_key is not None else os.environ.get(KEY)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and other processes get: all but the connections and the key, which they read themselves."""
        return {**{name: value for name, value in self.__dict__.items() if name != "_client"}, "_key": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a copied state."""
        self.__dict__.update(state, _key=os.environ.get(KEY))

    @cached_property
    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.url, api_key=self._key or NO_KEY, timeout=self.timeout, max_retries=self.max_retries
        )

    def models(self) -> list[str]:
        """The names of its models; empty if the server does not list them.

        Raises:
            ServerError: The server is not reachable, or refuses the key.
        """
        try:
            return [model.id for model in self._client.models.list()]
        except (openai.NotFoundError, openai.BadRequestError):
            return []
        except openai.OpenAIError as error:
            raise self._error(error) from error

    def embed(self, model: str, inputs: Sequence[str] | Sequence[Sequence[int]]) -> Tensor:
        """The vectors of texts or of token ids, (B, D) float32.

        Raises:
            RefusedError: The server does not take inputs of this kind.
            ServerError: It is not reachable, fails, or gives other vectors than one for each input.
        """
        parts = np.array_split(np.arange(len(inputs)), min(self.concurrency, len(inputs)))
        with ThreadPoolExecutor(len(parts)) as pool:
            futures = [pool.submit(self._embed, model, [inputs[row] for row in part]) for part in parts]
        errors = [error for future in futures if (error := future.exception())]
        if not errors:
            return torch.cat([future.result() for future in futures])
        if not isinstance(errors[0], ServerError):
            raise errors[0]
        lost = [row for part, future in zip(parts, futures, strict=True) if future.exception() for row in part]
        raise type(errors[0])(f"{errors[0]} This concerns {len(lost)} of {len(inputs)} texts, rows {_some(lost)}.")

    def _embed(self, model: str, inputs: list[Any]) -> Tensor:
        try:
            answer = self._client.embeddings.create(model=model, input=inputs, encoding_format="float")
        except openai.OpenAIError as error:
            raise self._error(error) from error
        rows = {part.index: part.embedding for part in answer.data}
        try:
            vectors = torch.tensor([rows[row] for row in range(len(inputs))], dtype=torch.float32)
            if vectors.ndim == 2 and vectors.isfinite().all():
                return F.normalize(vectors, dim=-1)
        except (KeyError, TypeError, ValueError):
            pass
        raise ServerError(f"{self.url} did not give a finite vector of one length for each of {len(inputs)} texts.")

    def _error(self, error: openai.OpenAIError) -> ServerError:
        status = getattr(error, "status_code", None)
        if status in (400, 422):
            return RefusedError(f"{self.url} refuses the request ({status}): {error!s:.300}")
        if status in (401, 403):
            return ServerError(f"{self.url} refuses the key ({status}). Set {KEY} to the server's key.")
        kind = "is not reachable" if isinstance(error, openai.APIConnectionError) else "failed"
        return ServerError(f"{self.url} {kind}, also after {self.max_retries} more attempts: {error!s:.300}")


class RefusedError(ServerError):
    """The server does not take a request of this form."""


class RemoteBackend(Backend):
    """The embeddings of one model of a server.

    Args:
        server: The server.
        name: Its name for the model.
        tokenizer: The model's fast tokenizer.
        max_seq_length: Most tokens of a text.

    Raises:
        ServerError: The server is not reachable.
        ValueError: It gives token ids and texts different vectors, so the tokenizer is not the model's.
    """

    def __init__(self, server: Server, name: str, tokenizer: Any, max_seq_length: int | None) -> None:
        # A copy of its own, because a call of the tokenizer itself changes it for other threads.
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = False
        self._backend = backend
        marks = backend.encode("a").special_tokens_mask
        self._before, self._after = marks.index(0), marks[::-1].index(0)  # special tokens around each text
        vectors = server.embed(name, PROBES)
        super().__init__(tokenizer, vectors.shape[1], max_seq_length)
        self.server, self.name = server, name
        self.takes_ids = self._check(vectors)

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteBackend:
        """A copy shares everything: nothing in it changes."""
        return self

    def _check(self, of_texts: Tensor) -> bool:
        """Tells whether the server takes token ids; if so, they have to mean the same as texts."""
        ids = [encoding.ids for encoding in self._backend.encode_batch(list(PROBES))]
        try:
            of_ids = self.server.embed(self.name, ids)
        except RefusedError:
            logger.info("%s takes no token ids, so prompts go out as text.", self.server.url)
            return False
        cosines = F.cosine_similarity(of_texts, of_ids) if of_ids.shape == of_texts.shape else torch.zeros(1)
        if cosines.min() < SAME:
            raise ValueError(
                f"The model {self.name!r} of {self.server.url} gives token ids other vectors than their text (cosine "
                f"{cosines.min():.4f}). Give the tokenizer of this model."
            )
        return True

    def embed(self, sequences: Sequence[Sequence[int]], prompt_length: int | None = None) -> Tensor:
        """Returns the vectors of token ids, (B, D) float32.

        Raises:
            ServerError: The server is not reachable, fails, or refuses.
        """
        if self.takes_ids:
            return self.server.embed(self.name, sequences)
        inner = [list(ids[self._before : len(ids) - self._after]) for ids in sequences]
        texts = self._backend.decode_batch(inner, skip_special_tokens=False)
        read = [encoding.ids for encoding in self._backend.encode_batch(texts)]
        if changed := sum(there != list(here) for there, here in zip(read, sequences, strict=True)):
            logger.warning(
                "%d of %d texts change a little when token ids become text: %s takes no token ids.",
                changed, len(texts), self.server.url,
            )  # fmt: skip
        return self.server.embed(self.name, texts)


def _some(rows: Sequence[Any]) -> str:
    return ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
