"""A call to the Hub → its answer, after a few tries, or an error that says what to do.

The Hub's client retries uploads and listings itself. It does not retry the token, branches, tags and commits: these
calls are retried here. The client's own message tells most errors; only a few need advice of ours.

The server is not trusted. The client waits as long as it is told to, and for the last byte of an answer that never
ends: so waiting times are cut, and each step has a deadline. An answer of a different form is an error of the server.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from huggingface_hub import close_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
)

from e2rank_st.folders.hub import distrust

__all__ = ["FAULTS", "NOTHING", "HubError", "ask", "may_have_acted"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Base of all errors of the HTTP library that the client uses, which was httpx and is httpx2.
TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]
# What the client raises where an answer is not of the form that it expects: no JSON, or keys and types are missing.
FOREIGN = (LookupError, AttributeError, TypeError, RecursionError, json.JSONDecodeError, UnicodeError)
FAULTS = (OSError, RuntimeError, ValueError, TRANSPORT, *FOREIGN)  # what the client raises, some of it wrapped
PASSING = {408, 429, 500, 502, 503, 504}
MANUAL = re.compile(r"For more information check: \S+")  # a page about HTTP, in messages of the HTTP library
DEADLINE = 600.0  # seconds for a step with all its tries, besides those for its files
SLOWEST = 250_000  # bytes a second, for the files of a step
NOTHING = "Nothing was published."
CHANGED = "Somebody else changed the repository meanwhile. Look at it, then run this again with --exist-ok."
NO_NETWORK = "The connection failed. Check network, proxy and HF_ENDPOINT, then run this again."


class HubError(RuntimeError):
    """The Hub did not do what was asked; the message says why, and what to do."""


def ask(
    step: str,
    call: Callable[[], Answer],
    state: Callable[[], str] = lambda: NOTHING,
    retries: bool = True,
    size: int = 0,
) -> Answer:
    """Call the Hub.

    Args:
        step: A name for the start of an error's message.
        call: Does it; a second call must do no harm.
        state: Tells how far the publication came, for the end of the message.
        retries: Whether to call again after a fault that may pass.
        size: Bytes of the files that go up or down, or are read; they lengthen the deadline.

    Raises:
        HubError: The client raised something, or the deadline has passed.
    """
    try:
        return _Worker(call, retries).result(DEADLINE + size / SLOWEST)
    except FAULTS as error:
        if isinstance(error, HubError):
            raise
        status = _status(_root(error))
        advice = CHANGED if status in {409, 412} else NO_NETWORK if not status and is_passing(error) else ""
        raise HubError(" ".join(filter(None, (f"{step}: {_words(error)}.", advice, state())))) from error


class _Worker(threading.Thread, Generic[Answer]):
    """A call in a thread that can be left behind: no time limit of the client covers an answer that keeps trickling."""

    def __init__(self, call: Callable[[], Answer], retries: bool) -> None:
        super().__init__(daemon=True)
        self.call, self.retries = call, retries
        self.is_left = False
        self.answer: list[Answer] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Hook of the thread: the call, with its tries."""
        try:
            self.answer.append(RETRY(self._try) if self.retries else self._try())
        except BaseException as error:  # noqa: BLE001  # raised again where the result is asked for
            self.error = error

    def result(self, seconds: float) -> Answer:
        """The call's result, or its error.

        Raises:
            TimeoutError: It did not end in time.
        """
        self.start()
        self.join(seconds)
        if self.is_alive():
            self.is_left = True
            close_session()  # the next byte is an error
            raise TimeoutError(f"the Hub did not answer in full within {seconds:.0f} s")
        if self.error is not None:
            raise self.error
        return self.answer[0]

    def _try(self) -> Answer:
        if self.is_left:
            raise HubError("the deadline has passed")  # it does not go on behind the user's back
        distrust()  # at each try, since the client makes a new session after some errors
        return self.call()


def is_passing(error: BaseException) -> bool:
    """Whether another try may do."""
    cause = _root(error)
    if status := _status(cause):
        return status in PASSING
    is_offline = isinstance(cause, OfflineModeIsEnabled)
    return isinstance(cause, (TRANSPORT, ConnectionError, TimeoutError)) and not is_offline


def may_have_acted(error: BaseException) -> bool:
    """Whether the Hub may have done what it was asked: it did not refuse, and its answer got lost or is not valid."""
    cause = _root(error)
    status = _status(cause)
    return status in PASSING if status else not isinstance(cause, OfflineModeIsEnabled)


def _status(cause: BaseException) -> int:
    response = getattr(cause, "response", None)
    return 0 if response is None else int(response.status_code)


def _root(error: BaseException) -> BaseException:
    """The Hub's answer or the broken connection, if the client wrapped one into another error."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, (TRANSPORT, OfflineModeIsEnabled)):
            return current
        current = current.__cause__
    return error


def _words(error: BaseException) -> str:
    """The client's message on one line."""
    cause = _root(error)
    if isinstance(cause, FOREIGN):
        words = " ".join(str(cause).split())
        return f"the answer is not one of the Hub ({type(cause).__name__}: {words:.100}); check proxy and HF_ENDPOINT"
    return " ".join(MANUAL.sub("", str(cause)).split()).rstrip(".") or type(cause).__name__


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if error and state.next_action:
        logger.warning("%s; trying again in %.0f s.", _words(error), state.next_action.sleep)


def _wait(state: RetryCallState) -> float:
    """The seconds that the Hub asks for, which are cut already; otherwise 1, 2 and 4."""
    error = state.outcome.exception() if state.outcome else None
    response = getattr(_root(error), "response", None) if error else None
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return float(asked) if asked.isdecimal() else wait_exponential()(state)


RETRY = Retrying(
    stop=stop_after_attempt(4),
    wait=_wait,
    retry=retry_if_exception(is_passing),
    before_sleep=_tell,
    reraise=True,
)
