"""A query and documents → an order that a large language model gives them, behind an OpenAI-compatible endpoint.

The model is shown numbered passages and answers ``[2] > [1] > [3]`` (RankGPT, arXiv 2304.09542). A list longer than a
window is ordered window by window, from its end to its start, so that the best of all can rise to the top. Answers cost
money and time, so each is kept on disk as soon as it is there: a run that is started again asks nothing twice.

The standard library makes the requests, since which HTTP client ``huggingface-hub`` brings changes with its version.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import logging
import os
import random
import re
import sqlite3
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["AnswerError", "LLMTeacher", "TeacherError", "parse_ranking", "ranking_messages"]

logger = logging.getLogger(__name__)

SYSTEM = "You order passages by how well they answer a search query."
ORDER = re.compile(r"\[[0-9]{1,9}\](?:\s*>\s*\[[0-9]{1,9}\])*")
THOUGHTS = re.compile(
    r"\A\s*<think>.*?</think>", re.DOTALL
)  # of a reasoning model, where its server does not part them
MAX_ANSWER_BYTES = 2**24
MAX_WAIT, MAX_BACKOFF = 600.0, 60.0  # seconds that a server may ask for, and that we wait unasked
RETRIED = frozenset({408, 409, 425, 429})  # and every 5xx: the same request may well succeed later


class TeacherError(RuntimeError):
    """A teacher gave no labels: its endpoint cannot be reached, refuses, or keeps failing."""


class AnswerError(TeacherError):
    """The endpoint works, but what it answers is no ranking."""


class _Retry(Exception):
    """An attempt failed in a way that another may not.

    Args:
        error: What to raise if there are no more attempts.
        wait: Seconds that the server wants us to wait.
    """

    def __init__(self, error: TeacherError, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


def ranking_messages(query: str, passages: Sequence[str], max_characters: int) -> list[dict[str, str]]:
    """The chat that asks for a ranking.

    Args:
        query: The query.
        passages: n passages; identifiers such as ``[3]`` inside of one are written ``(3)``.
        max_characters: Where a longer passage is cut.

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
    """Read an answer strictly: identifiers from 1 to ``count``, none twice, and nothing else but a chain of thought.

    Args:
        answer: What the model said.
        count: How many passages it was shown.

    Returns:
        All places, from 0, best first. Those that the answer lacks come last, in their original order.

    Raises:
        AnswerError: The answer is of another form, names a passage twice, or one that is not there.
    """
    chain = THOUGHTS.sub("", answer).strip()
    if not ORDER.fullmatch(chain):
        raise AnswerError(f"the answer is no ranking: got {chain!r:.80}, expected '[2] > [1] > ...'")
    named = [int(identifier) for identifier in re.findall("[0-9]+", chain)]
    unknown = [identifier for identifier in named if not 1 <= identifier <= count]
    if unknown:
        raise AnswerError(f"the answer names [{unknown[0]}], but there are {count} passages: got {chain!r:.80}")
    if len(set(named)) < len(named):
        raise AnswerError(f"the answer names a passage twice: got {chain!r:.80}")
    missing = sorted(set(range(1, count + 1)) - set(named))
    return [identifier - 1 for identifier in (*named, *missing)]


class LLMTeacher:
    """A large language model that orders documents, behind an OpenAI-compatible endpoint.

    Args:
        model: Name of the model, as the endpoint knows it.
        base_url: Where ``/chat/completions`` is, for example ``https://api.openai.com/v1``.
        api_key: The endpoint's key; by default the environment variable ``OPENAI_API_KEY``, if it is set. It is neither
            logged nor kept.
        cache: File for the answers, which also several runs at once may share; by default they are kept in memory only.
            An answer is found again by model and request, at whatever address the model is.
        window: Most passages in a prompt.
        step: How far the window moves. The best ``window - step`` of a longer list are in their right order.
        max_document_characters: Where a longer passage is cut.
        concurrency: How many slates are asked for at a time.
        max_attempts: How often a request is made before it fails for good.
        timeout: Seconds to wait for an answer.
        backoff: Seconds to wait after the first failed attempt; doubled after each further one, up to a minute. A
            server that says how long to wait is obeyed.
        request: Further fields of a request, for example ``{"max_tokens": 200}``; by default a temperature of 0.

    Raises:
        ValueError: A value is not allowed, or the cache is another kind of file.
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
        backoff: float = 1.0,
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
        self._endpoint = _Endpoint(base_url, api_key, max_attempts, timeout, backoff)
        self._answers = _Answers(cache)

    def label(self, query: str, documents: Sequence[str]) -> list[float]:
        """Labels of N documents: N - 1 for the one that comes first, 0 for the last.

        Raises:
            TeacherError: The endpoint failed for good; the message names it and the number of attempts.
            AnswerError: It answers, but with no ranking.
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
        """Labels of several slates, ``concurrency`` of them at a time.

        Raises:
            TeacherError: As for :meth:`label`; what was answered meanwhile is kept.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self.label, *pair) for pair in zip(queries, documents, strict=True)]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ranking(self, query: str, passages: Sequence[str]) -> list[int]:
        """The order of the passages of one window, from the cache or from the endpoint."""
        messages = ranking_messages(query, passages, self.max_document_characters)
        body = {"model": self.model, "messages": messages, **self.request}
        content = json.dumps(body, sort_keys=True).encode()
        key = hashlib.sha256(content).hexdigest()
        answer = self._answers.get(key)
        if answer is None:
            answer = self._endpoint.ask(content, lambda answer: parse_ranking(answer, len(passages)))
            self._answers.put(key, answer)
        return parse_ranking(answer, len(passages))


class _Answers:
    """Answers by the hash of their request, on disk; SQLite keeps them whole through a kill at any moment."""

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
            raise ValueError(f"{path} cannot keep answers ({error}); give a new file, or one of answers.") from error

    def get(self, key: str) -> str | None:
        with self._lock:
            found = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, answer: str) -> None:
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key to another host, and turn the request into another one."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Endpoint:
    """Makes requests until one succeeds."""

    def __init__(self, base_url: str, api_key: str | None, max_attempts: int, timeout: float, backoff: float) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError(
                "base_url must be a http or https address without a user, for example 'https://api.openai.com/v1'."
            )
        self.url = parts._replace(path=parts.path.rstrip("/") + "/chat/completions", fragment="").geturl()
        self.name = self.url.partition("?")[0]  # what is shown: a query may hold a key
        self.max_attempts = max_attempts
        self.timeout = timeout
        self.backoff = backoff
        key = (os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key).strip()
        if not (key.isascii() and key.isprintable()):  # http.client would show it in its error
            raise ValueError("The API key must consist of printable ASCII characters; it is not shown here.")
        self._key = key
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, content: bytes, check: Callable[[str], object]) -> str:
        """The answer to a request, once there is one that ``check`` accepts."""
        for attempt in range(1, self.max_attempts + 1):
            try:
                answer = self._attempt(content)
                check(answer)
                return answer
            except AnswerError as error:
                failure = _Retry(error)
            except _Retry as error:
                failure = error
            if attempt < self.max_attempts:
                self._wait(attempt, failure)
        kind = type(failure.error)
        raise kind(f"{self.name} failed {self.max_attempts} times, at last because {failure.error}.") from failure.error

    def _wait(self, attempt: int, failure: _Retry) -> None:
        # Half of it at random, so that many askers do not all come back at once.
        wait = max(failure.wait, min(self.backoff * 2 ** (attempt - 1), MAX_BACKOFF) * random.uniform(0.5, 1))
        logger.info("%s: %s; attempt %d of %d in %.1f s.", self.name, failure, attempt + 1, self.max_attempts, wait)
        time.sleep(wait)

    def _attempt(self, content: bytes) -> str:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self.url, content, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return _answer(response.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        # A connection that is refused, lost or silent, or an answer that breaks off.
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _Retry(TeacherError(f"there was no answer ({type(reason).__name__}: {reason})")) from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What to do about an answer with an error status."""
        try:
            shown = error.read(2000).decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException):
            shown = ""
        shown = shown.replace(self._key, "***") if self._key else shown
        said = TeacherError(f"it answered {error.code} {error.reason}: {shown.strip()!r:.200}")
        wait = _seconds(error.headers.get("Retry-After"))
        if wait > MAX_WAIT:
            return TeacherError(f"{self.name} wants us to wait {wait:.0f} s: {said}. Start again then.")
        if error.code in RETRIED or error.code >= 500:
            return _Retry(said, wait)
        return TeacherError(f"{self.name} refuses: {said}. Check address, key, model and request.")


def _answer(content: bytes) -> str:
    """The text in a chat completion."""
    try:
        answer = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        # Not the model's doing, but that of a proxy or a server in trouble.
        raise _Retry(TeacherError(f"it answered with no chat completion: got {content[:80]!r}")) from error
    if not isinstance(answer, str):
        raise AnswerError(f"it answered with no text: got {answer!r:.80}")
    return answer


def _seconds(retry_after: str | None) -> float:
    """How long a ``Retry-After`` header wants us to wait: it holds seconds or a date."""
    if retry_after is None:
        return 0.0
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):  # neither: that is no reason to fail
        return 0.0


def _line(text: str) -> str:
    """A text on one line, in which nothing looks like an identifier of ours."""
    return re.sub(r"\[(\d+)\]", r"(\1)", " ".join(text.split()))
