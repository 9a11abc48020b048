"""The gate: keys, sizes, and bodies that arrive slowly. What it lets through, the application sees unchanged."""

import asyncio
import json

import pytest

from e2rank_st.serving import limits
from e2rank_st.serving.limits import Gate, Limits, TooManyError, check_number, failure


class Inner:
    """An application that reads its request."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.after: list[str] = []

    async def __call__(self, scope, receive, send) -> None:
        """Read the request to its end, and wait for what comes after it."""
        message = await receive()
        self.bodies.append(message["body"])
        assert not message["more_body"]
        check_number(2, "documents")
        self.after.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def ask(gate: Gate, parts=(b"{}",), headers=(), path: str = "/v1/rerank", wait: bool = False):
    """Status, headers and body of an answer. ``wait``: the last part never comes."""
    sent = []
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if not wait:
        messages[-1]["more_body"] = False

    async def receive():
        if messages:
            return messages.pop(0)
        if wait:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_what_is_let_in():
    """Guards against a body in parts that is torn, and an application that cannot see that its client leaves."""
    inner = Inner()
    assert ask(Gate(inner, Limits(), None), [b"ab", b"", b"c"])[0] == 200
    assert (inner.bodies, inner.after) == ([b"abc"], ["http.disconnect"])


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (b"Bearer secret", 200),
        (b"Bearer secre", 401),
        (b"Bearer secrets", 401),
        (b"secret", 401),
        (b"Bearer s\xff", 401),
        (None, 401),
    ],
)
def test_the_key(given, status: int, monkeypatch: pytest.MonkeyPatch):
    """Guards against a key that is not asked for, and one whose letters can be found one by one by the time."""
    compared = []
    monkeypatch.setattr(limits.hmac, "compare_digest", lambda *both: compared.append(both) or both[0] == both[1])
    gate = Gate(Inner(), Limits(), "secret")
    found, headers, body = ask(gate, headers=[] if given is None else [(b"authorization", given)])
    assert found == status
    assert len(compared) == 1
    if status == 401:
        assert headers[b"www-authenticate"] == b"Bearer"
        assert "Authorization: Bearer" in json.loads(body)["error"]["message"] and b"secret" not in body
    assert ask(gate, path="/health")[0] == 200
    assert ask(gate, path="/metrics")[0] == 401


def test_sizes(monkeypatch: pytest.MonkeyPatch):
    """Guards against a large body that is kept, or waited for, whether it tells its size or not."""
    monkeypatch.setattr(limits, "REST_SECONDS", 0.01)
    inner = Inner()
    gate = Gate(inner, Limits(max_body_bytes=10), None)
    assert ask(gate, [b"1234567890"])[0] == 200
    status, _, body = ask(gate, [b"x" * 6] * 100, wait=True)
    assert (status, json.loads(body)["error"]["type"]) == (413, "too_large")
    assert "more than 10 bytes" in json.loads(body)["error"]["message"]
    assert ask(gate, [b""], [(b"content-length", b"11")], wait=True)[0] == 413
    assert ask(gate, [b"1"], [(b"content-length", b"eleven")])[0] == 200
    assert len(inner.bodies) == 2


def test_a_body_that_does_not_arrive():
    """Guards against a slow sender who keeps a request open for ever."""
    status, headers, body = ask(Gate(Inner(), Limits(timeout=0.01), None), [b"{"], wait=True)
    assert (status, headers[b"connection"]) == (408, b"close")
    assert "within 0.01 seconds" in json.loads(body)["error"]["message"]


def test_numbers_are_those_of_the_server():
    """Guards against limits of one server that hold in another, or outside of a request."""
    check_number(10**9, "documents")
    with pytest.raises(TooManyError, match="Got 2 documents; the most is 1"):
        ask(Gate(Inner(), Limits(max_documents=1), None))
    assert ask(Gate(Inner(), Limits(max_documents=2), None))[0] == 200


def test_an_error_is_text():
    """Guards against an answer that cannot be written, because it repeats half of a character."""
    assert (
        json.dumps(failure("/rerank", "no \ud800", "x"), ensure_ascii=False).encode()
        == b'{"error": "no ?", "error_type": "x"}'
    )
