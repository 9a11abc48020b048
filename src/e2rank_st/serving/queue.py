"""Token ids of many requests → forward passes that they share.

Each request runs in a thread of its own, as a plain call of ``rerank`` or ``encode``. The first module of its model is
a :class:`QueueBackend`: it puts the sequences of a forward pass into one queue, some tens at a time, and waits. One
thread takes what is in the queue, up to a number of tokens, and computes it. So short requests pass between the parts
of a long one. Libraries that batch calls (LitServe, batched, Ray Serve) count items instead of tokens, and do not drop
the items of a client that has left.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from e2rank_st.backends.module import Backend, PromptBackend
from e2rank_st.embedding_e2rank import token_batches
from e2rank_st.model import E2Rank
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.serving.cache import Tokens, VectorCache

__all__ = ["ForwardQueue", "Job", "LateError", "LeftError", "QueueBackend", "TokenLimitError", "queued"]

TEXT, PROMPT = "text", "prompt"
LARGEST = 256  # most sequences in a forward pass; the number of tokens is bounded, too


class LateError(TimeoutError):
    """A request takes longer than it may."""


class LeftError(ConnectionError):
    """Nobody waits for the answer any more."""


class TokenLimitError(ValueError):
    """A request has more tokens than it may."""


@dataclass
class Job:
    """One request, as the queue sees it.

    Attributes:
        seconds: How long it may take; None sets no limit.
        max_tokens: Most tokens of all its texts; None sets no limit.
        tokens: Those so far.
    """

    seconds: float | None = None
    max_tokens: int | None = None
    tokens: int = 0
    _begin: float = field(default_factory=time.monotonic)
    _has_left: bool = False
    _waiting: Future[Tensor] | None = None

    def leave(self) -> None:
        """Drop what is not computed yet. Any thread may call this."""
        self._has_left = True
        if (waiting := self._waiting) is not None:
            waiting.cancel()

    def count(self, tokens: int) -> None:
        """Add to the tokens.

        Raises:
            TokenLimitError: There are too many.
            LeftError: The client has left.
        """
        self.tokens += tokens
        if self.max_tokens is not None and self.tokens > self.max_tokens:
            raise TokenLimitError(
                f"The request has more than {self.max_tokens} tokens. Send fewer or shorter documents, or cut them "
                "with max_tokens_per_doc."
            )
        if self._has_left:
            raise LeftError("The client has left.")

    def wait(self, future: Future[Tensor]) -> Tensor:
        """Wait for vectors.

        Raises:
            LateError: It takes too long.
            LeftError: The client has left.
        """
        self._waiting = future
        if self._has_left:  # between the last check and here
            future.cancel()
        left = None if self.seconds is None else max(0.0, self._begin + self.seconds - time.monotonic())
        try:
            return future.result(left)
        except CancelledError as error:
            raise LeftError("The client has left.") from error
        except TimeoutError as error:
            future.cancel()
            raise LateError(f"The request took more than {self.seconds:g} seconds.") from error


_job: ContextVar[Job | None] = ContextVar("_job", default=None)


@dataclass(eq=False)
class _Part:
    """The sequences of one forward call of one request."""

    kind: tuple[str, int | None]  # text or prompt, and the prompt's length that the pooling leaves out
    sequences: list[Tokens]
    vectors: Future[Tensor]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


class ForwardQueue:
    """The queue before the networks of one model, and the thread that computes.

    Args:
        model: The model.
        max_tokens: Most tokens that are taken at a time. One part alone may have more.
        wait: Seconds to wait for other requests that run, before a smaller number is computed.
        cache_bytes: Size of a cache of vectors of texts; 0 keeps none.
        on_batch: Is told the numbers of requests, of sequences and of tokens of each batch.
    """

    def __init__(
        self,
        model: E2Rank,
        *,
        max_tokens: int = 16_384,
        wait: float = 0.003,
        cache_bytes: int = 0,
        on_batch: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        self.model = model.eval()
        self._networks = {TEXT: model, PROMPT: model.listwise.prompt_model}
        self._features = model.listwise.embedder().features
        self._dimension = model.get_embedding_dimension() or 0
        self.max_tokens, self.wait, self._on_batch = max_tokens, wait, on_batch
        self._cache = VectorCache(cache_bytes, self._dimension)
        self._parts: deque[_Part] = deque()
        self._running = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._thread = threading.Thread(target=self._work, name="queue", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Number of parts that wait."""
        return len(self._parts)

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        """Run a request in this block and thread."""
        with self._changed:
            self._running += 1
        token = _job.set(job)
        try:
            job.count(0)
            yield
        finally:
            _job.reset(token)
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Compute what waits, and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._compute.shutdown()

    def embed(self, network: str, sequences: Sequence[Tokens], prompt_length: int | None) -> Tensor:
        """Wait for the vectors of sequences, (B, D).

        Raises:
            LateError: The request takes too long.
            LeftError: Its client has left.
            TokenLimitError: It has too many tokens.
            RuntimeError: The forward pass failed, or the queue is closed.
        """
        job = _job.get() or Job()
        job.count(sum(map(len, sequences)))
        known = self._cache.find(sequences, prompt_length) if network == TEXT else {}
        if fresh := [ids for ids in dict.fromkeys(sequences) if ids not in known]:
            part = _Part((network, prompt_length), fresh, Future())
            with self._changed:
                if self._is_closed:
                    raise RuntimeError("The server is shutting down.")
                self._parts.append(part)
                self._changed.notify_all()
            known |= zip(fresh, job.wait(part.vectors), strict=True)
        return torch.stack([known[ids] for ids in sequences])

    def _work(self) -> None:
        while parts := self._take():
            result = self._compute.submit(self._vectors, parts)
            error = result.exception()
            for part in parts:
                if error is not None:
                    part.vectors.set_exception(error)
                else:
                    part.vectors.set_result(torch.stack([result.result()[ids] for ids in part.sequences]))

    def _take(self) -> list[_Part]:
        """Wait for parts of one kind, and take them, in their order; none after the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._parts or self._is_closed)
                # More parts can come only from requests that run and do not wait here.
                self._changed.wait_for(self._is_full, self.wait)
                if not self._parts:
                    return []
                kind, taken, tokens = self._parts[0].kind, list[_Part](), 0
                for part in [part for part in self._parts if part.kind == kind]:
                    if taken and tokens + part.tokens > self.max_tokens:
                        break
                    self._parts.remove(part)
                    if part.vectors.set_running_or_notify_cancel():
                        taken.append(part)
                        tokens += part.tokens
                if taken:
                    return taken

    def _is_full(self) -> bool:
        return (
            self._is_closed
            or len(self._parts) >= self._running
            or sum(part.tokens for part in self._parts) >= self.max_tokens
        )

    @torch.inference_mode()
    def _vectors(self, parts: Sequence[_Part]) -> dict[Tokens, Tensor]:
        network, prompt_length = parts[0].kind
        distinct = list(dict.fromkeys(ids for part in parts for ids in part.sequences))
        shared = {} if prompt_length is None else {"prompt_length": prompt_length}
        vectors: dict[Tokens, Tensor] = {}
        for batch in token_batches([len(ids) for ids in distinct], LARGEST, self.model.device.type):
            rows = [distinct[row] for row in batch]
            found = self._networks[network]({**self._features(rows), **shared})["sentence_embedding"]
            vectors |= zip(rows, found[:, : self._dimension].float().cpu(), strict=True)
        self._on_batch(len(parts), len(distinct), sum(map(len, distinct)))
        if network == TEXT:
            self._cache.keep(vectors, prompt_length)
        return vectors


class QueueBackend(Backend):
    """The queue as the first module of a model; texts are tokenised by the first module of the model behind it."""

    def __init__(self, queue: ForwardQueue, network: str) -> None:
        model = queue.model
        super().__init__(model.tokenizer, model.get_embedding_dimension() or 0, model.max_seq_length)
        object.__setattr__(self, "_own", model[0])  # an assignment would register it
        self.queue, self.network = queue, network
        self.include_prompt = all(getattr(module, "include_prompt", True) for module in model)
        for name in ("processing_kwargs", "query_length", "document_length"):
            if hasattr(model[0], name):
                setattr(self, name, getattr(model[0], name))

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenises as the model itself does."""
        features: dict[str, Any] = self._own.preprocess(inputs, prompt=prompt, **kwargs)
        return features

    def embed(self, sequences: Sequence[Sequence[int]], prompt_length: int | None = None) -> Tensor:
        """Waits for the vectors, (B, D)."""
        return self.queue.embed(self.network, [tuple(ids) for ids in sequences], prompt_length)


def queued(queue: ForwardQueue) -> E2Rank:
    """Make a model that computes by the queue. Any number of threads may call it at once."""
    model = queue.model
    reranker = ListwiseRerank(**{name: getattr(model.listwise, name) for name in model.listwise.config_keys})
    if model.listwise.adapter is not None:
        reranker.adapter = PromptBackend(QueueBackend(queue, PROMPT))  # type: ignore[assignment]
    modules: list[nn.Module] = [QueueBackend(queue, TEXT), reranker]
    found = E2Rank(
        modules=modules,
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        truncate_dim=model.truncate_dim,
        device="cpu",
    )
    found.name, found.untrained = model.name, model.untrained
    return found
