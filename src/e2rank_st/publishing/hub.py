"""A call to the Hub → its answer, after a few tries, or an error that says what to do.

The Hub's client retries uploads and listings itself. It does not retry the token, branches, tags and commits: these
calls are retried here. The client's own message tells most errors; only a few need advice of ours.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
)

__all__ = ["FAULTS", "NOTHING", "HubError", "ask", "is_passing"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Base of all errors of the HTTP library that the client uses, which was httpx and is httpx2.
TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]
FAULTS = (OSError, RuntimeError, ValueError, TRANSPORT)  # what the client raises, some of it wrapped
PASSING = {408, 429, 500, 502, 503, 504}
MANUAL = re.compile(r"For more information check: \S+")  # a page about HTTP, in messages of the HTTP library
LONGEST_WAIT = 60.0  # seconds, also where the Hub asks for more
NOTHING = "Nothing was published."
CHANGED = "Somebody else changed the repository meanwhile. Look at it, then run this again with --exist-ok."
NO_NETWORK = "The connection failed. Check network, proxy and HF_ENDPOINT, then run this again."


class HubError(RuntimeError):
    """The Hub did not do what was asked; the message says why, and what to do."""


def ask(
    step: str, call: Callable[[], Answer], state: Callable[[], str] = lambda: NOTHING, retries: bool = True
) -> Answer:
    """Call the Hub.

    Args:
        step: A name for the start of an error's message.
        call: Does it; a second call must do no harm.
        state: Tells how far the publication came, for the end of the message.
        retries: Whether to call again after a fault that may pass.

    Raises:
        HubError: The client raised something.
    """
    try:
        return RETRY(call) if retries else call()
    except FAULTS as error:
        if isinstance(error, HubError):
            raise
        status = _status(_root(error))
        advice = CHANGED if status in {409, 412} else NO_NETWORK if not status and is_passing(error) else ""
        raise HubError(" ".join(filter(None, (f"{step}: {_words(error)}.", advice, state())))) from error


def is_passing(error: BaseException) -> bool:
    """Whether another try may do; then the Hub may also have acted, and only its answer got lost."""
    cause = _root(error)
    if status := _status(cause):
        return status in PASSING
    is_offline = isinstance(cause, OfflineModeIsEnabled)
    return isinstance(cause, (TRANSPORT, ConnectionError, TimeoutError)) and not is_offline


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
    return " ".join(MANUAL.sub("", str(cause)).split()).rstrip(".") or type(cause).__name__


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if error and state.next_action:
        logger.warning("%s; trying again in %.0f s.", _words(error), state.next_action.sleep)


def _wait(state: RetryCallState) -> float:
    """The seconds that the Hub asks for, up to a minute; otherwise 1, 2 and 4."""
    error = state.outcome.exception() if state.outcome else None
    response = getattr(_root(error), "response", None) if error else None
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked), LONGEST_WAIT) if asked.isdigit() else wait_exponential()(state)


RETRY = Retrying(
    stop=stop_after_attempt(4),
    wait=_wait,
    retry=retry_if_exception(is_passing),
    before_sleep=_tell,
    reraise=True,
)
