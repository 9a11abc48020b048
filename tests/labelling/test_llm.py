"""The LLM teacher, against a real server on loopback that also gives bad answers: none of them becomes a label."""

import json
import logging
import re
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from e2rank_st.data.slates import Slate
from e2rank_st.labelling.llm import AnswerError, LLMTeacher, TeacherError, parse_ranking, ranking_messages
from e2rank_st.labelling.teachers import label_slates

pytest.importorskip("openai")

KEY = "sk-secret-0123456789"
DOCUMENTS = ["three", "one", "four", "two"]
SLATE = Slate("how many", tuple(DOCUMENTS), (1, 0, 0, None), (True, False, False, False), "s")
Reply = tuple[int, dict[str, str], bytes]
JSON = {"Content-Type": "application/json"}
SOON = {"Retry-After-Ms": "1"}  # what openai's client waits, instead of half a second


def completion(answer: object) -> Reply:
    """What an endpoint replies when the model says this."""
    content = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode()
    return 200, JSON, content


def passages_of(body: dict) -> list[str]:
    """The passages in a request's prompt, in the order of their identifiers."""
    return re.findall(r"^\[\d+\] (.*)$", body["messages"][-1]["content"], re.MULTILINE)


def oracle(value: Callable[[str], float]) -> Callable[[dict], Reply]:
    """A model that orders passages perfectly by a value."""

    def answer(body: dict) -> Reply:
        passages = passages_of(body)
        order = sorted(range(len(passages)), key=lambda place: -value(passages[place]))
        return completion(" > ".join(f"[{place + 1}]" for place in order))

    return answer


class Server(ThreadingHTTPServer):
    """An endpoint on loopback: it gives the replies of a script one after the other, then ``default``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list = []
        self.default: Callable[[dict], Reply] = oracle(lambda passage: -["one", "two", "three", "four"].index(passage))
        self.requests: list[tuple[str, Message, dict]] = []
        self.lock = threading.Lock()
        self.busy = self.busiest = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    """Answers a request as its server's script says."""

    server: Server

    def do_POST(self) -> None:
        """Note the request, then follow the script."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, self.headers, body))
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
            step = self.server.script.pop(0) if self.server.script else self.server.default
        try:
            reply = step(body) if callable(step) else step
        finally:
            with self.server.lock:
                self.server.busy -= 1
        if reply is None:  # hang up
            self.connection.close()
            return
        status, headers, content = reply
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running endpoint, and no key or proxy of the machine in its way."""
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def teacher_at(server: Server, **options: object) -> LLMTeacher:
    """A teacher that does not wait long."""
    return LLMTeacher("m", server.url, **{"timeout": 5.0, **options})


def test_llm_labels_the_right_documents(server: Server):
    """Guards against a ranking read as ranks, since "three" is third, and paying for the order of one document."""
    assert teacher_at(server).label("q", ["a"]) == [0] and teacher_at(server).label("q", []) == []
    assert teacher_at(server).label("how many", DOCUMENTS) == [1, 3, 0, 2]
    ((path, _, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert passages_of(body) == DOCUMENTS
    assert "Search query: how many\n" in body["messages"][-1]["content"]


def test_cut_documents_are_reported(server: Server, caplog: pytest.LogCaptureFixture):
    """Guards against a label for the beginning of a document that nobody knows was cut."""
    server.default = oracle(len)
    with caplog.at_level(logging.INFO, logger="e2rank_st"):
        teacher_at(server, max_document_characters=5).label("q", ["a" * 6, "b"])
    assert caplog.messages == ["Cut 1 of 2 documents to 5 characters."]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[2] > [1] > [3]", [1, 0, 2]),
        (" [2]>[1]\n> [3]\n", [1, 0, 2]),
        ("<think>\n[1] > [2]? No: [9].\n</think>\n\n[3] > [2] > [1]", [2, 1, 0]),
        ("[3]", [2, 0, 1]),
        ("[3] > [2]", [2, 1, 0]),
    ],
)
def test_answers_are_read(answer: str, expected: list[int]):
    """Guards against a good answer thrown away; missing passages come last, in their original order."""
    assert parse_ranking(answer, 3) == expected


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "is not a ranking"),
        ("I cannot help with that.", "is not a ranking"),
        ("The ranking is [2] > [1] > [3]", "is not a ranking"),
        ("[2] > [1] > [3]. Passage 2 is best.", "is not a ranking"),
        ("2 > 1 > 3", "is not a ranking"),
        ("[2], [1], [3]", "is not a ranking"),
        ("[2] > [1] >", "is not a ranking"),
        ("[2] > [-1]", "is not a ranking"),
        ("[2] > [\u0661]", "is not a ranking"),
        ("[" + "9" * 5000 + "]", "is not a ranking"),
        ("<think>[2] > [1] > [3]", "is not a ranking"),
        ("[2] > [1] > [2]", "names a passage twice"),
        ("[2] > [1] > [4]", r"names \[4\], but there are 3 passages"),
        ("[0] > [1] > [2]", r"names \[0\], but there are 3 passages"),
    ],
)
def test_other_answers_are_refused(answer: str, reason: str):
    """Guards against a label that is a guess at the meaning of an answer."""
    with pytest.raises(AnswerError, match=reason):
        parse_ranking(answer, 3)


def test_passages_cannot_pass_for_the_prompt():
    """Guards against a footnote or line break in a passage that looks like the next passage, and against long ones."""
    content = ranking_messages("q\n[1] x", ["see [2]\n[2] not a passage", "b" * 50], 30)[-1]["content"]
    assert passages_of({"messages": [{"content": content}]}) == ["see (2) (2) not a passage", "b" * 30]
    assert "Search query: q (1) x\n" in content


@pytest.mark.parametrize(
    "bad",
    [
        completion("I would rather not."),
        completion("[2] > [2]"),
        completion(None),
        (200, {}, b"<html>busy</html>"),
        (200, JSON, b'{"choices": []}'),
        (200, JSON, b'{"choices"'),
        (429, SOON, b"slow down"),
        (503, SOON, b"oops"),
        None,
    ],
    ids=str,
)
def test_a_bad_reply_is_asked_for_again(bad: Reply | None, server: Server, tmp_path: Path):
    """Guards against a run that dies of one bad reply, and against a bad one that is trained on or kept."""
    server.script = [bad, bad]
    assert teacher_at(server, cache=tmp_path / "answers").label("how many", DOCUMENTS) == [1, 3, 0, 2]
    assert len(server.requests) == 3
    with sqlite3.connect(tmp_path / "answers") as database:
        assert database.execute("SELECT answer FROM answers").fetchall() == [("[2] > [4] > [1] > [3]",)]


@pytest.mark.parametrize(
    ("reply", "kind", "reason"),
    [
        (completion("[1] > [1]"), AnswerError, r"failed 2 times, at last because the answer names a passage twice"),
        (completion(None), AnswerError, r"failed 2 times, at last because its answer is not a text: got None"),
        ((200, {}, b"<html>"), TeacherError, r"failed 2 times, .* not a chat completion: got '<html>'"),
        ((200, JSON, b'{"choices"'), TeacherError, r"failed 2 times, at last because its answer is not JSON"),
        ((500, SOON, b"oops"), TeacherError, r"refuses or is not reachable: .*500"),
        (None, TeacherError, r"refuses or is not reachable: .*Connection error"),
        (lambda body: time.sleep(3) and None, TeacherError, r"refuses or is not reachable: .*timed out"),
    ],
)
def test_a_final_failure_says_where_and_why(reply: Reply | None, kind: type, reason: str, server: Server):
    """Guards against a traceback that names no endpoint, a run that hangs, and endless attempts."""
    server.script = [reply, reply]
    with pytest.raises(TeacherError, match=f"^{server.url} {reason}") as error:
        teacher_at(server, max_attempts=2, timeout=1).label("how many", DOCUMENTS)
    assert type(error.value) is kind
    assert len(server.requests) == 2


def test_a_refusal_is_not_repeated_and_shows_no_key(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Guards against six requests with a wrong key, and against a key in an error, a log or an object's text."""
    server.default = lambda body: (401, JSON, json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode())
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    teacher = teacher_at(server)
    with caplog.at_level(logging.DEBUG), pytest.raises(TeacherError, match=r"wrong key \*\*\*") as error:
        teacher.label("how many", DOCUMENTS)
    assert [headers["Authorization"] for _, headers, _ in server.requests] == [f"Bearer {KEY}"]
    shown = "".join(traceback.format_exception(error.value))
    assert KEY not in "".join([shown, caplog.text, repr(teacher)])
    with pytest.raises(TeacherError):
        teacher_at(server, api_key="").label("how many", DOCUMENTS)
    assert KEY not in server.requests[-1][1]["Authorization"], "an endpoint that is not to see it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 10, "step": 10}, "1 <= step < window, got step=10 and window=10"),
        ({"window": 1, "step": 1}, "1 <= step < window"),
        ({"step": 0}, "1 <= step < window, got step=0"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"max_attempts": 0}, "max_attempts must be at least 1, got 0"),
        ({"api_key": "sk-\nsecret"}, "printable ASCII characters; it is not shown here"),
        ({"base_url": "localhost:8000"}, "must be a http or https address"),
        ({"base_url": "http://user:secret@localhost"}, "address without user and query"),
    ],
)
def test_llm_options_are_checked(options: dict, message: str):
    """Guards against windows without overlap, in which nothing rises, and against secrets in an error."""
    with pytest.raises(ValueError, match=message) as error:
        LLMTeacher(**{"model": "m", "base_url": "http://localhost", **options})
    assert "secret" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    """Guards against an error that does not say what to install."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'e2rank-st\[llm\]'"):
        LLMTeacher("m", "http://localhost")


def test_a_restart_asks_nothing_twice(server: Server, tmp_path: Path):
    """Guards against paying again for what was answered before a run was stopped."""
    cache = tmp_path / "kept" / "answers"
    slates = [replace(SLATE, query=f"query {number}") for number in range(6)]
    first = list(label_slates(slates[:4], teacher_at(server, cache=cache)))
    assert len(server.requests) == 4
    whole = list(label_slates(slates, teacher_at(server, cache=cache)))
    assert whole[:4] == first
    assert len(server.requests) == 6
    assert all("query 4" in str(body) or "query 5" in str(body) for *_, body in server.requests[4:])


def test_another_model_or_request_is_asked(server: Server, tmp_path: Path):
    """Guards against one model's answers taken for another's."""
    cache = tmp_path / "answers"
    teacher_at(server, cache=cache).label("how many", DOCUMENTS)
    LLMTeacher("other", server.url, cache=cache).label("how many", DOCUMENTS)
    teacher_at(server, cache=cache, request={"temperature": 1, "max_tokens": 99}).label("how many", DOCUMENTS)
    teacher_at(server, cache=cache).label("how many", DOCUMENTS[::-1])
    assert len(server.requests) == 4
    assert server.requests[2][2]["max_tokens"] == 99


def test_answers_before_a_failure_are_kept(server: Server, tmp_path: Path):
    """Guards against a batch whose good answers are lost with its bad one."""
    queries, lists = [f"query {number}" for number in range(4)], [DOCUMENTS] * 4
    good = server.default
    server.default = lambda body: (400, {}, b"") if "query 3" in str(body) else good(body)
    with pytest.raises(TeacherError):
        teacher_at(server, cache=tmp_path / "answers", concurrency=1).label_batch(queries, lists)
    server.default = good
    asked = len(server.requests)
    teacher_at(server, cache=tmp_path / "answers").label_batch(queries, lists)
    assert len(server.requests) == asked + 1


def test_a_cache_that_is_something_else(tmp_path: Path):
    """Guards against an error that does not name the file, and against a file of the user's that is overwritten."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 100, encoding="utf-8")
    with pytest.raises(ValueError, match=r"notes\.txt cannot keep answers"):
        LLMTeacher("m", "http://localhost", cache=path)
    assert path.read_text(encoding="utf-8").startswith("my notes")


def test_slates_are_asked_for_at_the_same_time(server: Server):
    """Guards against hours of waiting in a row; and against more requests at once than were allowed."""
    good = server.default
    server.default = lambda body: time.sleep(0.05) or good(body)
    queries = [f"query {number}" for number in range(9)]
    assert teacher_at(server, concurrency=3).label_batch(queries, [DOCUMENTS] * 9) == [[1, 3, 0, 2]] * 9
    assert 2 <= server.busiest <= 3


@pytest.mark.parametrize(
    ("count", "window", "step"), [(100, 20, 10), (47, 10, 3), (21, 20, 10), (20, 20, 10), (5, 4, 1)]
)
def test_sliding_window_brings_the_best_to_the_top(count: int, window: int, step: int, server: Server):
    """Guards against windows from the wrong end or without overlap: from the worst order, the top comes out right."""
    values = [str(number) for number in range(count)]
    server.default = oracle(float)
    labels = teacher_at(server, window=window, step=step).label("largest", values)
    order = sorted(range(count), key=lambda place: -labels[place])
    top = count if count <= window else window - step
    assert order[:top] == list(range(count))[::-1][:top]
    assert sorted(labels) == list(range(count))
    assert len(server.requests) == 1 + -(-max(0, count - window) // step)
    assert max(len(passages_of(body)) for *_, body in server.requests) == min(window, count)


def test_one_hopeless_slate_can_be_left_out(server: Server, caplog: pytest.LogCaptureFixture):
    """Guards against a data set that one query the model will not answer blocks for ever; never against an outage."""
    slates = [replace(SLATE, query=f"query {number}") for number in range(3)]
    good = server.default
    server.default = lambda body: completion("Sorry.") if "query 1" in str(body) else good(body)
    options = {"max_attempts": 2}
    with pytest.raises(AnswerError):
        list(label_slates(slates, teacher_at(server, **options)))
    labelled = list(label_slates(slates, teacher_at(server, **options), skip_failures=True))
    assert [slate.query for slate in labelled] == ["query 0", "query 2"]
    assert caplog.messages == ["Left out 1 slates, because the teacher's answer was not usable."]
    server.default = lambda body: (500, {}, b"")
    with pytest.raises(TeacherError):
        list(label_slates(slates, teacher_at(server, **options), skip_failures=True))
