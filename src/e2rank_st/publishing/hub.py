"""A call to the Hub → its answer, after as many tries as make sense, or an error that says what to do.

The Hub's client retries some of its requests and explains some of its errors; here are the others. A token is never
part of a message: it goes nowhere but into the client.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

__all__ = ["CREATING", "HubError", "Patience", "explain", "is_passing", "status_of"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Base of all errors of the HTTP library that the client uses, which was httpx and is httpx2.
TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]
FAULTS = (OSError, RuntimeError, ValueError, TRANSPORT)  # what the client raises, some of it wrapped
PASSING = {408, 429, 500, 502, 503, 504}


CREATING = "creating the repository"  # a step with advice of its own


class HubError(RuntimeError):
    """The Hub did not do what was asked; the message says why, and what to do."""


@dataclass(frozen=True)
class Advice:
    """What an error means.

    Attributes:
        statuses: HTTP statuses that it has.
        meaning: What it means and what to do; may name ``{repo_id}`` and ``{namespace}``.
        step: Only in steps whose name holds this.
        words: Only where the Hub's answer holds one of these.
    """

    statuses: tuple[int, ...]
    meaning: str
    step: str = ""
    words: tuple[str, ...] = ()


# The first that fits.
ADVICE = (
    Advice((413,), "A file or the commit is too large for the Hub. Run this again with --shard-size 1GB."),
    Advice(
        (402, 403, 429, 507),
        "The storage or rate quota of {namespace} is used up. Free space, wait, or ask for more at "
        "https://huggingface.co/settings/billing.",
        words=("quota", "storage", "billing", "payment"),
    ),
    Advice(
        (401,),
        "The Hub does not accept the token: it is mistyped, expired or revoked. Make one with write rights at "
        "https://huggingface.co/settings/tokens and log in again: hf auth login.",
    ),
    Advice(
        (403,),
        "The token may not write to {repo_id}. Make one with write rights to {namespace} at "
        "https://huggingface.co/settings/tokens, or ask for write access there.",
    ),
    Advice((404,), "There is no user or organisation {namespace}. Create it, or correct --repo-id.", CREATING),
    Advice((404,), "The Hub has no {repo_id}, or hides it from this token. Correct --repo-id, or use another token."),
    Advice((409,), "The name {repo_id} is taken. Publish into it with --exist-ok, or choose another.", CREATING),
    Advice((409, 412), "Somebody else changed {repo_id} meanwhile. Look at what changed, then run this again."),
    Advice((400, 422), "The Hub refuses the content. Correct what it names, then run this again."),
    Advice((429,), "The Hub asks for fewer requests. Wait some minutes, then run this again."),
    Advice(
        (408, 500, 502, 503, 504),
        "The Hub has a problem: https://status.huggingface.co. Run this again later.",
    ),
)
NO_TOKEN = (
    "There is no token. Log in with: hf auth login, or set HF_TOKEN. Make one with write rights at "
    "https://huggingface.co/settings/tokens."
)
OFFLINE = "The Hub is switched off here by HF_HUB_OFFLINE. Unset it to upload."
NO_NETWORK = (
    "The Hub was not reached, or the connection broke. Check network, proxy and HF_ENDPOINT; then run this again."
)


@dataclass(frozen=True)
class Patience:
    """How often and how long to wait for the Hub.

    Attributes:
        tries: How often a call is made.
        first_wait: Seconds before the second try; they double from try to try.
        longest_wait: Most seconds before a try, unless the Hub itself names a time.
    """

    tries: int = 4
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def call(self, step: str, do: Callable[[], T], done: Callable[[], T | None] | None = None) -> T:
        """Make a call until it succeeds, fails for good, or the tries are used up.

        Args:
            step: What is done, for the log.
            do: The call.
            done: Looks whether a call that seemed to fail did its work: an answer may get lost. Asked before each
                further try.

        Returns:
            What the call, or ``done``, returned.

        Raises:
            OSError, RuntimeError, ValueError: The last error of the client.
        """
        for number in count(1):
            try:
                return do()
            except FAULTS as error:
                if not is_passing(error):
                    raise
                if done and (result := _ask(done)) is not None:
                    return result
                if number == self.tries:
                    raise
                wait = self._wait(number, error)
                logger.warning("%s: %s; trying again in %.0f s.", step, _what(error), wait)
                time.sleep(wait)
        raise AssertionError("count() does not end")

    def _wait(self, number: int, error: Exception) -> float:
        response = getattr(_root(error), "response", None)
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        return float(asked) if asked.isdigit() else min(self.first_wait * 2 ** (number - 1), self.longest_wait)


def _ask(done: Callable[[], T | None]) -> T | None:
    try:
        return done()
    except FAULTS:  # as unreachable as before: what counts is the error of the call itself
        return None


def explain(error: Exception, step: str, repo_id: str) -> str:
    """Say in a sentence what went wrong, and what to do about it.

    Args:
        error: What the client raised.
        step: What was being done.
        repo_id: The repository's Hub id.
    """
    cause = _root(error)
    names = {"repo_id": repo_id, "namespace": repo_id.partition("/")[0]}
    if isinstance(cause, LocalTokenNotFoundError):
        meaning = NO_TOKEN
    elif isinstance(cause, OfflineModeIsEnabled):
        meaning = OFFLINE
    elif (status := status_of(error)) is not None:
        text = f"{cause} {_answer(cause)}".lower()
        meaning = next(
            (
                row.meaning
                for row in ADVICE
                if status in row.statuses
                and row.step in step
                and (not row.words or any(word in text for word in row.words))
            ),
            "Run this again; if it stays, ask at https://discuss.huggingface.co.",
        )
    elif isinstance(cause, (TRANSPORT, ConnectionError, TimeoutError)):
        meaning = NO_NETWORK
    else:
        meaning = "Correct it, then run this again."
    return f"{step}: {_what(error)}. {meaning.format(**names)}"


def status_of(error: Exception) -> int | None:
    """The HTTP status behind an error, if one is."""
    response = getattr(_root(error), "response", None)
    return None if response is None else int(response.status_code)


def is_passing(error: Exception) -> bool:
    """Whether another try may do; then the Hub may also have acted, and only its answer got lost.

    Args:
        error: What the client raised.
    """
    cause = _root(error)
    if isinstance(cause, (OfflineModeIsEnabled, LocalTokenNotFoundError)):
        return False
    status = status_of(error)
    return isinstance(cause, (TRANSPORT, ConnectionError, TimeoutError)) if status is None else status in PASSING


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _root(error: Exception) -> BaseException:
    """The error that says most: the Hub's answer, the broken connection, or else the first."""
    telling = (HfHubHTTPError, TRANSPORT, OfflineModeIsEnabled, LocalTokenNotFoundError)
    return next((one for one in _chain(error) if isinstance(one, telling)), error)


def _what(error: Exception) -> str:
    cause = _root(error)
    status = status_of(error)
    words = _answer(cause) or re.sub(r"\s+", " ", str(cause)).strip()[:300] or type(cause).__name__
    return f"HTTP {status}, {words}" if status is not None else words.rstrip(".")


def _answer(cause: Any) -> str:
    """The Hub's own words."""
    return str(getattr(cause, "server_message", None) or "").strip().rstrip(".")
