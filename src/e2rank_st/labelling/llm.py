"""A query and documents → an order from a large language model, behind an OpenAI-compatible endpoint.

The model sees numbered passages and answers ``[2] > [1] > [3]`` (RankGPT, arXiv 2304.09542). A list longer than a
window is sorted window by window, from its end to its start; the best document can rise to the top. Answers cost money
and time. Each is saved at once, so a restarted run does not ask again. The package ``openai`` makes the requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["AnswerError", "LLMTeacher", "TeacherError", "parse_ranking", "ranking_messages"]

logger = logging.getLogger(__name__)

SYSTEM = "You order passages by how well they answer a search query."
ORDER = re.compile(r"\[[0-9]{1,9}\](?:\s*>\s*\[[0-9]{1,9}\])*")
# Of a reasoning model, if its server does not separate them.
THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
NO_KEY = "no-key-given"  # openai's client does not start without a key; a local server ignores it


class TeacherError(RuntimeError):
    """A teacher gave no labels: its endpoint is not reachable, refuses, or fails repeatedly."""


class AnswerError(TeacherError):
    """The endpoint works, but its answer is not a ranking."""


def ranking_messages(query: str, passages: Sequence[str], max_characters: int) -> list[dict[str, str]]:
    """Write the chat that asks for a ranking.

    Args:
        query: The query.
        passages: n passages; an identifier such as ``[3]`` inside a passage is written ``(3)``.
        max_characters: Longest passage; a longer one is cut.

    Returns:
        A system message and a user message.
    """
    numbered = "\n".join(f"[{place}] {_line(passage)[:max_characters]}" for place, passage in enumerate(passages, 1))
    return [
        {"role": "system", "content": SYSTEM},
        {
            "role": "user",
            "content": f"Here are {len(passages)} passages, each with its identifier in brackets.\n\n{numbered}\n\n"
            f"Search query: {_line(query)}\n\n"
            f"Order all {len(passages)} passages by how well they answer the search query, the best first. "
            "Answer with their identifiers in the form [2] > [1] > [3], and with nothing else.",
        },
    ]


def parse_ranking(answer: str, count: int) -> list[int]:
    """Read an answer strictly: distinct identifiers from 1 to ``count``, perhaps after a chain of thought.

    Returns:
        All places, from 0, best first. Places that the answer lacks come last, in their original order.

    Raises:
        AnswerError: The answer has a different form, names a passage twice, or names an unknown passage.
    """
    chain = THOUGHTS.sub("", answer).strip()
    if not ORDER.fullmatch(chain):
        raise AnswerError(f"the answer is not a ranking: got {chain!r:.80}, expected '[2] > [1] > ...'")
    named = [int(identifier) for identifier in re.findall("[0-9]+", chain)]
    unknown = [identifier for identifier in named if not 1 <= identifier <= count]
    if unknown:
        raise AnswerError(f"the answer names [{unknown[0]}], but there are {count} passages: got {chain!r:.80}")
    if len(set(named)) < len(named):
        raise AnswerError(f"the answer names a passage twice: got {chain!r:.80}")
    missing = sorted(set(range(1, count + 1)) - set(named))
    return [identifier - 1 for identifier in (*named, *missing)]


class LLMTeacher:
    """A large language model that sorts documents, behind an OpenAI-compatible endpoint.

    Args:
        model: The endpoint's name for the model.
        base_url: Address of ``/chat/completions``, for example ``https://api.openai.com/v1``.
        api_key: The endpoint's key; by default the environment variable ``OPENAI_API_KEY``. The key is neither logged
            nor saved. Give ``""`` to an endpoint that must not see it.
        cache: File for the answers; by default they are kept in memory only. Several runs may share it at once. The
            key of an answer is model and request, without the address.
        window: Most passages in a prompt.
        step: Step of the window. The best ``window - step`` of a longer list are in their right order.
        max_document_characters: Longest passage; a longer one is cut.
        concurrency: Number of slates that are asked for at a time.
        max_attempts: Number of requests before an unreachable endpoint, or an answer that is not a ranking, fails.
        timeout: Seconds to wait for an answer.
        request: Further fields of a request, for example ``{"max_tokens": 200}``; by default a temperature of 0.

    Raises:
        ValueError: A value is not allowed, or the cache file is not a cache.
        ImportError: The package ``openai`` is missing.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        window: int = 20,
        step: int = 10,
        max_document_characters: int = 2000,
        concurrency: int = 4,
        max_attempts: int = 6,
        timeout: float = 120.0,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        if window < 2 or not 1 <= step < window:
            raise ValueError(f"Windows must overlap: 1 <= step < window, got step={step} and window={window}.")
        for name, value in (("concurrency", concurrency), ("max_attempts", max_attempts)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.model = model
        self.window = window
        self.step = step
        self.max_document_characters = max_document_characters
        self.concurrency = concurrency
        self.request = {"temperature": 0} if request is None else dict(request)
        self.base_url = base_url
        self.max_attempts = max_attempts
        self._client = _client(base_url, api_key, max_attempts, timeout)
        self._answers = _Answers(cache)

    def label(self, query: str, documents: Sequence[str]) -> list[float]:
        """Label N documents: N - 1 for the first of the ranking, 0 for the last.

        Raises:
            TeacherError: The endpoint failed every time; the message names it and the number of attempts.
            AnswerError: The endpoint answered, but not with a ranking.
        """
        long = sum(len(document) > self.max_document_characters for document in documents)
        if long:
            logger.info("Cut %d of %d documents to %d characters.", long, len(documents), self.max_document_characters)
        order = list(range(len(documents)))
        stop = len(order)
        while stop > 1:
            start = max(0, stop - self.window)
            ranking = self._ranking(query, [documents[place] for place in order[start:stop]])
            order[start:stop] = [order[start + place] for place in ranking]
            stop = stop - self.step if start else 0
        labels = {place: float(worse) for worse, place in enumerate(reversed(order))}
        return [labels[place] for place in range(len(documents))]

    def label_batch(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[float]]:
        """Label several slates, ``concurrency`` at a time.

        Raises:
            TeacherError: As for :meth:`label`. Answers that came before the error are kept.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self.label, *pair) for pair in zip(queries, documents, strict=True)]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ranking(self, query: str, passages: Sequence[str]) -> list[int]:
        """Get the order of the passages of one window, from the cache or from the endpoint."""
        messages = ranking_messages(query, passages, self.max_document_characters)
        body = {"model": self.model, "messages": messages, **self.request}
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        answer = self._answers.get(key)
        if answer is None:
            answer = self._ask(body, len(passages))
            self._answers.put(key, answer)
        return parse_ranking(answer, len(passages))

    def _ask(self, body: dict[str, Any], count: int) -> str:
        """Ask until the answer is a ranking of ``count`` passages. The client repeats requests that get no answer."""
        from openai import OpenAIError

        failure = TeacherError()
        for _ in range(self.max_attempts):
            try:
                answer = _text(self._client.post("/chat/completions", body=body, cast_to=object))
                parse_ranking(answer, count)
                return answer
            except TeacherError as error:
                failure = error
            except json.JSONDecodeError as error:
                failure = TeacherError(f"its answer is not JSON: {error}")
            except OpenAIError as error:
                # An endpoint may quote the key. It would also stand in the cause, so that is not kept.
                said = f"{error} {error.__cause__ or ''}".strip().replace(self._client.api_key, "***")
                raise TeacherError(
                    f"{self.base_url} refuses or is not reachable: {said:.300}. Check address, key, model and request."
                ) from None
        said = f"{self.base_url} failed {self.max_attempts} times, at last because {failure}."
        raise type(failure)(said) from failure


class _Answers:
    """Answers by the hash of their request, on disk. SQLite protects them from a kill at any moment."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path or ":memory:", timeout=60, check_same_thread=False)
        weakref.finalize(self, self._database.close)
        try:
            with self._database:
                self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} cannot keep answers ({error}); give a new file or a cache.") from error

    def get(self, key: str) -> str | None:
        with self._lock:
            found = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, answer: str) -> None:
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))


def _client(base_url: str, api_key: str | None, max_attempts: int, timeout: float) -> Any:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ImportError("The LLM teacher needs one more package: pip install 'e2rank-st[llm]'") from error
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query:
        raise ValueError(
            "base_url must be a http or https address without user and query, such as 'https://api.openai.com/v1'."
        )
    key = (os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key).strip()
    if not (key.isascii() and key.isprintable()):  # the HTTP client would show it in its error
        raise ValueError("The API key must consist of printable ASCII characters; it is not shown here.")
    return OpenAI(base_url=base_url, api_key=key or NO_KEY, timeout=timeout, max_retries=max_attempts - 1)


def _text(completion: Any) -> str:
    """Return the text in a chat completion."""
    try:
        answer = completion["choices"][0]["message"]["content"]
    except (LookupError, TypeError) as error:
        # The model did not write this, but a proxy, or a server with a problem.
        raise TeacherError(f"its answer is not a chat completion: got {completion!r:.80}") from error
    if not isinstance(answer, str):
        raise AnswerError(f"its answer is not a text: got {answer!r:.80}")
    return answer


def _line(text: str) -> str:
    """Put a text on one line, and rewrite everything that looks like one of our identifiers."""
    return re.sub(r"\[(\d+)\]", r"(\1)", " ".join(text.split()))
