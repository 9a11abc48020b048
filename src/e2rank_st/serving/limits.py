"""Requests → those that are allowed in: the key, the size of the body, and the time that it takes to arrive."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio

__all__ = ["Gate", "Limits", "TooManyError", "check_number", "failure"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

REST_SECONDS = 5.0  # to send what nobody reads: a client that is cut off while it sends may not see the answer
OPEN = ("/health",)  # for those who ask without a key whether the server works


@dataclass(frozen=True)
class Limits:
    """What one request may cost, and how many may wait.

    Attributes:
        max_body_bytes: Size of a request's body.
        max_documents: Documents or inputs of a request.
        max_tokens: Tokens of all texts of a request.
        max_queue: Requests that run or wait.
        timeout: Seconds until an answer.
    """

    max_body_bytes: int = 16_000_000
    max_documents: int = 2_000
    max_tokens: int = 1_000_000
    max_queue: int = 256
    timeout: float = 60.0


_limits: ContextVar[Limits | None] = ContextVar("_limits", default=None)


class TooManyError(Exception):
    """A request has more documents or token ids than it may."""


def check_number(count: int, what: str, limit: str = "max_documents") -> None:
    """Refuse too many values of the request that is read here, before each of them is checked and copied.

    Raises:
        TooManyError: There are more than the limit of this name.
    """
    limits = _limits.get()
    if limits is not None and count > (most := getattr(limits, limit)):
        raise TooManyError(f"Got {count:,} {what}; the most is {most:,}. Send them in several requests.")


class Gate:
    """ASGI middleware that reads the whole body, within its limits, before the application sees the request.

    Args:
        app: The application.
        limits: The limits.
        key: The key that requests must have as ``Authorization: Bearer ...``; None lets everyone in.
    """

    def __init__(self, app: App, limits: Limits, key: str | None) -> None:
        self.app, self.limits = app, limits
        self._expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        path: str = scope["path"]
        if self._expected and path not in OPEN and not hmac.compare_digest(given, self._expected):
            return await _refuse(
                path, receive, send, 401, "Give the server's key: Authorization: Bearer KEY.", "unauthorized"
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.max_body_bytes:
            return await self._too_large(path, receive, send)
        with anyio.move_on_after(self.limits.timeout) as clock:
            body = await self._read(receive)
        if clock.cancelled_caught:
            text = f"The request did not arrive within {self.limits.timeout:g} seconds."
            return await _refuse(path, None, send, 408, text, "timeout")
        if body is None:
            return await self._too_large(path, receive, send)
        rest = iter([{"type": "http.request", "body": body, "more_body": False}])
        _limits.set(self.limits)

        async def replay() -> Message:
            return next(rest, None) or await receive()

        return await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None if it is too large."""
        parts, size = [], 0
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.max_body_bytes:
                return None
            if not message.get("more_body"):  # or the client has left
                return b"".join(parts)

    async def _too_large(self, path: str, receive: Receive, send: Send) -> None:
        text = f"The request has more than {self.limits.max_body_bytes:,} bytes. Send fewer documents at a time."
        await _refuse(path, receive, send, 413, text, "too_large")


def failure(path: str, error: str, kind: str) -> dict[str, Any]:
    """The body of an answer that tells an error: OpenAI's form below /v1, since its client shows no other, or TEI's."""
    error = error.encode(errors="replace").decode()  # half of a surrogate pair cannot be written
    if path.startswith("/v1/"):
        return {"error": {"message": error, "type": kind, "param": None, "code": None}}
    return {"error": error, "error_type": kind}


async def _refuse(path: str, receive: Receive | None, send: Send, status: int, error: str, kind: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    body = json.dumps(failure(path, error, kind)).encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with anyio.move_on_after(REST_SECONDS):
        while receive is not None and (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.body", "body": b""})
