"""Servers that refuse, fail, are slow, or answer nonsense: a clear error, and never a wrong vector."""

import json
import logging
import math
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from fastapi.responses import HTMLResponse

from e2rank_st import E2Rank
from e2rank_st.backends.connect import read_settings
from e2rank_st.backends.remote import PROBES, RemoteBackend, Server, ServerError
from tests.backends.servers import Foreign, closing, own, serve

SECRET = "sk-very-secret-of-the-tests"
FAILED = (500, {})
AT_ONCE = {"retry-after-ms": "1"}  # the client's default is half a second and more


def backend(url: str, tiny: E2Rank, name: str = "toy", **options: Any) -> RemoteBackend:
    """The toy model's backend at a server."""
    return RemoteBackend(Server(url, **options), name, tiny.tokenizer, tiny.max_seq_length)


def ids(tiny: E2Rank, *texts: str) -> list[list[int]]:
    return [tiny.tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1/"])
def test_addresses(url: str):
    """Guards against an address that works with one ending only."""
    assert Server(url).url == "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "127.0.0.1:8000"}, "url must be the address"),
        ({"url": "http://"}, "url must be the address"),
        ({"url": None}, "url must be the address"),
        ({"url": f"http://me:{SECRET}@127.0.0.1"}, "must not hold a password"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_values_that_are_refused(options: dict[str, Any], told: str):
    """Guards against a value that is found out in the middle of an index, and a password in a message."""
    with pytest.raises(ValueError, match=told) as caught:
        Server(**{"url": "http://127.0.0.1:8000", **options})
    assert SECRET not in str(caught.value)


def test_requests_are_few_and_at_once(tiny: E2Rank):
    """Guards against a request for each text, and against more at a time than were allowed."""
    server = Foreign(tiny, delay=0.1)
    with serve(server.app()) as url:
        remote = backend(url, tiny, concurrency=3)
        server.requests.clear()
        vectors = remote.embed(ids(tiny, *(f"fact {row}" for row in range(10))))
        assert vectors.shape == (10, tiny.get_embedding_dimension())
        assert sorted(len(body["input"]) for _, body in server.requests) == [3, 3, 4]
        assert server.peak == 3
        server.requests.clear()
        remote.embed(ids(tiny, "one"))
        assert len(server.requests) == 1


def test_the_key_goes_to_the_server_only(tiny: E2Rank, monkeypatch: pytest.MonkeyPatch, caplog):
    """Guards against a key in a log, a message, a copy or a pickle, and against one for somebody else."""
    server, local = Foreign(tiny), "a-key-for-another"
    monkeypatch.setenv("OPENAI_API_KEY", local)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, local)
    with serve(server.app()) as url, caplog.at_level(logging.DEBUG):
        open_to_all = backend(url, tiny)
        monkeypatch.setenv("E2RANK_API_KEY", SECRET)
        remote = backend(url, tiny, max_retries=0)
        given = [headers["authorization"] for headers, _ in server.requests]
        assert given == ["Bearer no-key-given"] * 4 + [f"Bearer {SECRET}"] * 4
        assert local not in json.dumps(server.requests)
        told = [repr(remote), repr(remote.server), str(pickle.dumps(remote)), repr(remote.server.__getstate__())]
        for status in (400, 401, 403, 404, 422, 429, 500):  # such a server repeats the key
            server.failures = [(status, {})]
            with pytest.raises(ServerError) as caught:
                remote.embed(ids(tiny, "iron"))
            told += [str(caught.value), repr(caught.value), str(pickle.dumps(caught.value))]
        assert pickle.loads(pickle.dumps(remote)).embed(ids(tiny, "iron")).shape[0] == 1
        assert server.requests[-1][0]["authorization"] == f"Bearer {SECRET}"
        monkeypatch.delenv("E2RANK_API_KEY")
        pickle.loads(pickle.dumps(remote)).embed(ids(tiny, "iron"))
        assert server.requests[-1][0]["authorization"] == "Bearer no-key-given"
        assert open_to_all.embed(ids(tiny, "iron")).shape[0] == 1
    assert SECRET not in caplog.text and not any(SECRET in text for text in told)
    assert not any(SECRET in str(vars(record)) for record in caplog.records)


def test_our_own_server_asks_for_its_key(tiny: E2Rank, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a refusal that does not say what to do."""
    with own(tiny, key=SECRET) as url:
        with pytest.raises(OSError, match=r"refuses the key \(401\). Set E2RANK_API_KEY"):
            E2Rank.remote(url, str(checkpoint))
        monkeypatch.setenv("E2RANK_API_KEY", SECRET)
        assert E2Rank.remote(url, str(checkpoint)).encode("iron").shape == (32,)


def test_a_busy_server_is_asked_again(tiny: E2Rank):
    """Guards against a call that fails because a server was busy for a moment, and against one that does not wait."""
    server = Foreign(tiny)
    with serve(server.app()) as url:
        remote = backend(url, tiny, concurrency=1)
        server.failures, begin = [(429, {"retry-after": "1"}), (503, AT_ONCE)], time.monotonic()
        server.requests.clear()
        assert remote.embed(ids(tiny, "iron")).shape[0] == 1
        assert len(server.requests) == 3 and time.monotonic() - begin > 1


def test_a_server_that_always_fails(tiny: E2Rank):
    """Guards against endless attempts, and against an error that does not tell how many there were."""
    server = Foreign(tiny)
    with serve(server.app()) as url:
        remote = backend(url, tiny, max_retries=2, concurrency=1)
        server.requests.clear()
        server.failures = [(500, AT_ONCE)] * 10
        with pytest.raises(ServerError, match=r"failed \(500\), also after 2 more attempts: no.*such as 'iron'"):
            remote.embed(ids(tiny, "iron"))
        assert len(server.requests) == 3
        server.failures = [(413, {})]
        with pytest.raises(ServerError, match=r"failed \(413\): no"):
            remote.embed(ids(tiny, "iron"))
        assert len(server.requests) == 4


def test_a_part_that_fails(tiny: E2Rank):
    """Guards against an index that lacks the texts of one request, and an error that does not tell which they are."""
    server = Foreign(tiny)
    texts = [f"fact {row}" for row in range(8)]
    with serve(server.app()) as url:
        remote = backend(url, tiny, max_retries=0)
        server.failures = [FAILED]
        with pytest.raises(ServerError, match=r"This concerns 2 of 8 texts, such as 'fact \d'\.") as caught:
            remote.embed(ids(tiny, *texts))
        assert len(caught.value.rows) == 2 and texts[caught.value.rows[0]] in str(caught.value)


def test_a_failure_beside_a_refusal(tiny: E2Rank):
    """Guards against a server that is taken for one without token ids since it fails while it is looked at."""
    server = Foreign(tiny, failures=[None, None, (422, {}), FAILED])  # two requests with texts, and two with ids
    with serve(server.app()) as url, pytest.raises(ServerError, match="failed"):
        backend(url, tiny, max_retries=0)


def test_a_server_without_token_ids(tiny: E2Rank, caplog: pytest.LogCaptureFixture):
    """Guards against a request with ids for each batch, where the server had refused them at the start."""
    server = Foreign(tiny, takes_ids=False)
    with serve(server.app()) as url, caplog.at_level(logging.INFO, "e2rank_st"):
        remote = backend(url, tiny)
        assert not remote.takes_ids and "takes no token ids" in caplog.text
        server.requests.clear()
        given = ids(tiny, *PROBES)
        vectors = remote.embed(given)
        assert {text for _, body in server.requests for text in body["input"]} == {*PROBES}
        expected = tiny.listwise.embedder().embed([tuple(row) for row in given], "text")
        assert F.cosine_similarity(vectors, expected).min() > 1 - 1e-5


def shuffled(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "data": answer["data"][::-1]}


def scaled(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "data": [{**row, "embedding": [7 * x for x in row["embedding"]]} for row in answer["data"]]}


@pytest.mark.parametrize("change", [shuffled, scaled])
def test_answers_in_another_form(change: Callable, tiny: E2Rank):
    """Guards against vectors of other texts where a server answers in its own order, or does not normalise."""
    server, given = Foreign(tiny, change=change), ids(tiny, "fleas", "iron", "bread rises")
    with serve(server.app()) as url:
        vectors = backend(url, tiny, concurrency=1).embed(given)
    expected = F.normalize(tiny.listwise.embedder().embed([tuple(row) for row in given], "text"), dim=-1)
    assert F.cosine_similarity(vectors, expected).min() > 1 - 1e-5
    assert vectors.norm(dim=-1).tolist() == pytest.approx([1, 1, 1])


def of_first(**change: Any) -> Callable:
    """Changes the first row of an answer."""
    return lambda answer: {**answer, "data": [{**answer["data"][0], **change}, *answer["data"][1:]]}


NONSENSE: dict[str, Callable] = {
    "too few": lambda answer: {**answer, "data": answer["data"][:-1]},
    "too many": lambda answer: {**answer, "data": [*answer["data"], {**answer["data"][0], "index": 2}]},
    "none": lambda answer: {**answer, "data": []},
    "twice": lambda answer: {**answer, "data": [answer["data"][0]] * 2},
    "null": lambda answer: {**answer, "data": None},
    "no data": lambda answer: {"object": "list"},
    "a list": lambda answer: answer["data"],
    "base64": of_first(embedding="AAAA"),
    "other length": of_first(embedding=[1.0, 2.0]),
    "empty": of_first(embedding=[]),
    "infinite": of_first(embedding=[10**400] * 32),
    "words": of_first(embedding=["one"] * 32),
    "no index": of_first(index=None),
    "nested": of_first(embedding=[[1.0] * 32]),
    "not JSON": lambda answer: HTMLResponse("<html>Welcome</html>"),
    "broken JSON": lambda answer: HTMLResponse('{"data": [', media_type="application/json"),
    "NaN": lambda answer: HTMLResponse(
        json.dumps({**answer, "data": [{"index": row, "embedding": [math.nan] * 32} for row in (0, 1)]}),
        media_type="application/json",
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense(name: str, tiny: E2Rank):
    """Guards against a traceback from the depths, and against vectors of the wrong texts."""
    server = Foreign(tiny)
    with serve(server.app()) as url:
        remote = backend(url, tiny, concurrency=1, max_retries=0)
        server.change = NONSENSE[name]
        with pytest.raises(ServerError, match=r"finite vector .* for each of 2 texts\. This concerns 2 of 2"):
            remote.embed(ids(tiny, "fleas", "iron"))
        with pytest.raises(ServerError, match="finite vector"):
            backend(url, tiny, concurrency=1, max_retries=0)


def test_vectors_that_change_their_length(tiny: E2Rank):
    """Guards against two models behind one address."""
    server, lengths = Foreign(tiny), iter([4, 5, 6, 6])

    def cut(answer: dict[str, Any]) -> dict[str, Any]:
        length = next(lengths)
        return {**answer, "data": [{**row, "embedding": row["embedding"][:length]} for row in answer["data"]]}

    with serve(server.app()) as url:
        remote = backend(url, tiny, concurrency=2)
        server.change = cut
        for told in ("vectors of different lengths.*2 of 2 texts", "now gives vectors of 6 numbers, and gave 32"):
            with pytest.raises(ServerError, match=told):
                remote.embed(ids(tiny, "fleas", "iron"))


def test_a_list_of_models_that_is_none(tiny: E2Rank):
    """Guards against a server whose list of models is something else."""
    server = Foreign(tiny, names=None)
    with serve(server.app()) as url:
        assert Server(url).models() == []
        assert Server(f"{url}/docs").models() == []
    app = Foreign(tiny).app()
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") != "/v1/models"]

    @app.get("/v1/models")
    def page() -> HTMLResponse:
        return HTMLResponse("<html>Welcome</html>")

    with serve(app) as url:
        assert Server(url).models() == []


def test_nobody_there(tiny: E2Rank, checkpoint: Path):
    """Guards against a server that is down, and a message of one word."""
    with closing() as url, pytest.raises(OSError, match=r"is not reachable, also after 1 more attempts: .*disconnect"):
        E2Rank.remote(url, str(checkpoint), max_retries=1)
    with pytest.raises(OSError, match=r"is not reachable: .*refused"):
        E2Rank.remote("http://127.0.0.1:9", str(checkpoint), max_retries=0)


def test_a_slow_server(tiny: E2Rank):
    """Guards against a call that never ends."""
    server = Foreign(tiny)
    with serve(server.app()) as url:
        remote = backend(url, tiny, timeout=0.3, max_retries=0)
        server.delay = 2
        begin = time.monotonic()
        with pytest.raises(ServerError, match=r"does not answer within 0\.3 seconds"):
            remote.embed(ids(tiny, "iron"))
        assert time.monotonic() - begin < 1.5


def test_threads_get_their_own_vectors(tiny: E2Rank):
    """Guards against answers that are mixed up between threads, as token ids and as text."""
    texts = [f"fact {row} about iron" for row in range(40)]
    given = ids(tiny, *texts)
    expected = tiny.listwise.embedder().embed([tuple(row) for row in given], "text")
    for takes_ids in (True, False):
        server = Foreign(tiny, takes_ids=takes_ids)
        with serve(server.app()) as url, ThreadPoolExecutor(8) as pool:
            remote = backend(url, tiny)
            parts = list(pool.map(lambda row, remote=remote: remote.embed(given[row : row + 4]), range(36)))
        for row, vectors in enumerate(parts):
            assert F.cosine_similarity(vectors, expected[row : row + 4]).min() > 1 - 1e-5


def test_settings_are_read_without_the_weights(checkpoint: Path, tmp_path: Path):
    """Guards against a client that needs the gigabytes which the server holds."""
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_settings(str(tmp_path)).max_seq_length == 1024
