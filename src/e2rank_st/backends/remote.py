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
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e2rank_st.arguments_e2rank import matrix, natural
from e2rank_st.backends.module import KEY, Backend

try:
    import openai
except ModuleNotFoundError as error:
    raise ImportError("Remote models need openai: pip install 'e2rank-st[remote]'") from error

__all__ = ["RefusedError", "RemoteBackend", "Server", "ServerError"]

logger = logging.getLogger(__name__)

NO_KEY = "no-key-given"  # the client does not start without one
PROBES = ("how long do fleas live", "Größe: 3 µm (±5 %) — «naïve» 東京 №7")
SAME = 0.999  # cosine of two vectors of one text, in whatever precision the server computes
REFUSED = (400, 422)  # a request of this form
UNLISTED = (*REFUSED, 404, 405, 501)  # of servers that do not list their models


class ServerError(OSError):
    """A server of embeddings is not reachable, fails, or does not give a vector for each text.

    Attributes:
        rows: The texts that it concerns, as rows of the request.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class RefusedError(ServerError):
    """The server does not take a request of this form."""


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
        if isinstance(url, str) and "@" in urlsplit(url).netloc:  # messages show the address
            raise ValueError(f"url must not hold a password. Set {KEY}, or give api_key.")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
            raise ValueError(f"url must be the address of a server, such as http://127.0.0.1:8000, got {url!r:.200}.")
        if not isinstance(timeout, (int, float)) or not timeout > 0:
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
        client = openai.OpenAI(
            base_url=self.url, api_key=self._key or NO_KEY, timeout=self.timeout, max_retries=self.max_retries
        )
        client.organization = client.project = None  # those of the environment are for OpenAI's own server
        return client

    def models(self) -> list[str]:
        """The names of its models; empty if the server does not list them.

        Raises:
            ServerError: The server is not reachable, or refuses the key.
        """
        try:
            return [str(model.id) for model in self._client.models.list()]
        except openai.OpenAIError as error:
            if getattr(error, "status_code", None) in UNLISTED:
                return []
            raise self._error(error) from None
        except (AttributeError, TypeError, ValueError):  # the answer has a different form
            return []

    def embed(self, model: str, inputs: Sequence[str] | Sequence[Sequence[int]]) -> Tensor:
        """The vectors of texts or of token ids, (B, D) float32, B ≥ 1.

        Raises:
            RefusedError: The server does not take inputs of this kind.
            ServerError: It is not reachable, fails, or gives other vectors than one for each input.
        """
        parts = np.array_split(np.arange(len(inputs)), min(self.concurrency, len(inputs)))
        with ThreadPoolExecutor(len(parts)) as pool:  # of this call: a model that nobody uses holds no threads
            futures = [pool.submit(self._embed, model, [inputs[row] for row in part]) for part in parts]
        if errors := [error for future in futures if (error := future.exception())]:
            # A refusal tells how the server is. A failure beside it may have the same cause, or not.
            error = next((error for error in errors if not isinstance(error, RefusedError)), errors[0])
            if isinstance(error, ServerError):
                error.rows = [
                    int(row) for part, future in zip(parts, futures, strict=True) if future.exception() for row in part
                ]
            raise error
        vectors = [future.result() for future in futures]
        if len({part.shape[1] for part in vectors}) > 1:
            raise ServerError(f"{self.url} gives vectors of different lengths.", range(len(inputs)))
        return torch.cat(vectors)

    def _embed(self, model: str, inputs: list[Any]) -> Tensor:
        try:
            answer = self._client.embeddings.create(model=model, input=inputs, encoding_format="float")
            rows = {part.index: part.embedding for part in answer.data}
            if len(rows) == len(answer.data) == len(inputs):
                return F.normalize(matrix("vectors", [rows[row] for row in range(len(inputs))]), dim=-1)
        except openai.OpenAIError as error:
            raise self._error(error) from None
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # the answer has a different form
            pass
        raise ServerError(f"{self.url} did not give a finite vector of one length for each of {len(inputs)} texts.")

    def _error(self, error: openai.OpenAIError) -> ServerError:
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return ServerError(f"{self.url} refuses the key ({status}). Set {KEY} to the server's key.")
        told = _told(error)
        if self._key:  # some servers repeat what they got
            told = told.replace(self._key, "***")
        if status in REFUSED:
            return RefusedError(f"{self.url} refuses the request ({status}): {told:.300}")
        if status == 404:
            return ServerError(f"{self.url} has no embeddings, or none of this model (404): {told:.300}")
        again = f", also after {self.max_retries} more attempts" if self.max_retries else ""
        if isinstance(error, openai.APITimeoutError):
            return ServerError(f"{self.url} does not answer within {self.timeout:g} seconds{again}.")
        if isinstance(error, openai.APIConnectionError):
            return ServerError(f"{self.url} is not reachable{again}: {told:.300}")
        is_repeated = status is None or status >= 500 or status in (408, 409, 429)
        return ServerError(f"{self.url} failed ({status}){again if is_repeated else ''}: {told:.300}")


def _told(error: openai.OpenAIError) -> str:
    """What a server, or else the network, says."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return str(body or error.__cause__ or error)


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
        marks: list[int] = backend.encode("a").special_tokens_mask
        self._before, self._after = marks.index(0), marks[::-1].index(0)  # special tokens around each text
        self._has_warned = False
        vectors = server.embed(name, PROBES)
        super().__init__(tokenizer, vectors.shape[1], max_seq_length)
        self.server, self.name = server, name
        self.takes_ids = self._check(vectors)

    @property
    def adds_tokens(self) -> bool:
        """Whether the tokenizer puts special tokens around a text, as the server's own does with texts."""
        return self._before + self._after > 0

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteBackend:
        """A copy has a tokenizer and limits of its own, and shares the server."""
        found = copy.copy(self)
        found.tokenizer = copy.deepcopy(self.tokenizer, memo)
        return found

    def _check(self, of_texts: Tensor) -> bool:
        """Tells whether the server takes token ids; if so, they have to mean the same as texts."""
        ids = [encoding.ids for encoding in self._backend.encode_batch(list(PROBES))]
        try:
            cosines = _cosines(of_texts, self.server.embed(self.name, ids))
        except RefusedError as error:
            if not self._takes_any_ids():
                logger.info("%s takes no token ids, so prompts go out as text.", self.server.url)
                return False
            raise ValueError(
                f"The model {self.name!r} of {self.server.url} takes token ids, but not these. Give the tokenizer of "
                f"this model. {error}"
            ) from None
        if cosines.min() < SAME:
            raise ValueError(
                f"The model {self.name!r} of {self.server.url} gives token ids other vectors than their text (cosine "
                f"{cosines.min():.4f}). Give the tokenizer of this model; the server must not put a prompt or other "
                "special tokens around a text."
            )
        return True

    def _takes_any_ids(self) -> bool:
        try:
            self.server.embed(self.name, [[0]])  # an id of every vocabulary
        except RefusedError:
            return False
        return True

    def check_length(self, most: int) -> None:
        """Refuse a server that cuts listwise prompts as if they were documents.

        Args:
            most: The most tokens of a prompt.

        Raises:
            ServerError: The server is not reachable, or fails.
            ValueError: It cuts them.
        """
        limit = self.max_seq_length
        if limit is None or most < limit + 32:
            return
        first, other = (encoding.ids for encoding in self._backend.encode_batch(["flea", "iron"]))
        before, after = first[: self._before], first[len(first) - self._after :]
        first, other = (ids[len(before) : len(ids) - len(after)] for ids in (first, other))
        start, room = first * limit, min(most, limit + limit // 2 + 32) - len(before) - len(after)
        ends = [(start[:limit] + word * limit)[:room] for word in (first, other)]
        try:
            vectors = self.embed([[*before, *end, *after] for end in ends])
        except RefusedError:  # nothing is wrong in silence: it would also refuse a prompt
            return
        if _cosines(vectors[:1], vectors[1:]).min() > SAME:
            raise ValueError(
                f"The model {self.name!r} of {self.server.url} reads about {limit} tokens of a text, and a listwise "
                f"prompt may have {most}. Raise the server's limit, or give max_prompt_tokens={limit}."
            )

    def embed(self, sequences: Sequence[Sequence[int]], prompt_length: int | None = None) -> Tensor:
        """Returns the vectors of token ids, (B, D) float32.

        Raises:
            ServerError: The server is not reachable, fails, or refuses. The message names the texts.
        """
        inputs = sequences if self.takes_ids else self._texts(sequences)
        try:
            vectors = self.server.embed(self.name, inputs)
            if vectors.shape[1] != self.dimension:
                raise ServerError(
                    f"{self.server.url} now gives vectors of {vectors.shape[1]} numbers, and gave {self.dimension}.",
                    range(len(inputs)),
                )
        except ServerError as error:
            ids = sequences[next(iter(error.rows))]
            text = self._backend.decode(list(ids), skip_special_tokens=True)[:60]
            lost = f"This concerns {len(error.rows)} of {len(sequences)} texts, such as {text!r}."
            raise type(error)(f"{error} {lost}", error.rows) from error
        return vectors

    def _texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Token ids as texts, without the special tokens that the server puts around them."""
        inner = [list(ids[self._before : len(ids) - self._after]) for ids in sequences]
        texts: list[str] = self._backend.decode_batch(inner, skip_special_tokens=False)
        read = [encoding.ids for encoding in self._backend.encode_batch(texts)]
        if changed := sum(there != list(here) for there, here in zip(read, sequences, strict=True)):
            logger.log(
                logging.DEBUG if self._has_warned else logging.WARNING,
                "%d of %d texts change a little when token ids become text: %s takes no token ids.",
                changed, len(texts), self.server.url,
            )  # fmt: skip
            self._has_warned = True
        return texts


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one, other) if one.shape == other.shape else torch.zeros(1)
