"""The application on a real socket: real clients, limits, and clients that behave badly."""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.serving.app import Batching, Limits
from tests.serving.conftest import Held
from tests.serving.served import served

QUERY = "how long do fleas live"
KEY = "a key"
PATHS = ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/embeddings", "/v1/search")
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def index(tiny: E2Rank, facts, tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    pytest.importorskip("lancedb")
    documents = [{"id": str(row), "text": fact, "year": 2000 + row} for row, fact in enumerate(facts)]
    return SearchIndex.create(tmp_path_factory.mktemp("index") / "facts.lance", tiny, documents)


@pytest.fixture(scope="module")
def client(tiny: E2Rank, index: SearchIndex) -> Iterator[httpx.Client]:
    with served(lambda: (tiny, index)) as client:
        yield client


@pytest.fixture(scope="module")
def url(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def error_of(answer: httpx.Response) -> str:
    """What an error says: in OpenAI's form below /v1, and else in TEI's."""
    body = answer.json()
    if answer.request.url.path.startswith("/v1/"):
        assert body.keys() == {"error"}
        return str(body["error"]["message"])
    assert body.keys() == {"error", "error_type"}
    return str(body["error"])


def in_shape(results, hits) -> None:
    assert [one["index"] for one in results] == [hit["corpus_id"] for hit in hits]
    scores = [(1 + hit["score"]) / 2 for hit in hits]
    assert [one["relevance_score"] for one in results] == pytest.approx(scores, abs=1e-5)


def until(condition, seconds: float = 60) -> None:
    """Until something is so that only the server knows."""
    pause, turns = threading.Event(), int(seconds / 0.01)
    assert any(condition() or pause.wait(0.01) for _ in range(turns))


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("path", PATHS[:3])
def test_jina_and_vllm(client, tiny, facts, path: str):
    """Guards against a field that these clients need, one that they do not know, and results of a different call."""
    body = {"model": "any", "query": QUERY, "documents": facts, "top_n": 3, "return_documents": True, "user": "x"}
    found = client.post(path, json=body).json()
    assert found.keys() == {"id", "model", "usage", "results"}
    assert found["model"] == "tiny-qwen3"
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 100
    in_shape(found["results"], tiny.rerank(QUERY, facts, top_k=3))
    assert [one["document"] for one in found["results"]] == [{"text": facts[one["index"]]} for one in found["results"]]
    plain = client.post(path, json={"query": QUERY, "documents": [{"text": fact} for fact in facts]}).json()["results"]
    in_shape(plain, tiny.rerank(QUERY, facts))
    assert plain[0].keys() == {"index", "relevance_score"}
    assert client.post(path, json=body).json()["id"] != found["id"]


def test_tei(client, tiny, facts):
    """Guards against an object where TEI's clients want a bare list."""
    found = client.post("/rerank", json={"query": QUERY, "texts": facts, "truncate": True}).json()
    assert [one["index"] for one in found] == [hit["corpus_id"] for hit in tiny.rerank(QUERY, facts)]
    assert found[0].keys() == {"index", "score"}


def test_cohere(url, tiny, facts):
    """Guards against an answer that Cohere's own client cannot read."""
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="none", base_url=url)
    found = client.rerank(model="any", query=QUERY, documents=facts, top_n=4, max_tokens_per_doc=4096)
    in_shape([vars(one) for one in found.results], tiny.rerank(QUERY, facts, top_k=4))
    assert found.id
    with pytest.raises(cohere.errors.UnprocessableEntityError):
        client.rerank(model="any", query=QUERY, documents=facts, top_n=-1)


def test_openai(url, tiny, facts):
    """Guards against vectors that OpenAI's own client cannot read: it asks for base64 by itself."""
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key="none", base_url=f"{url}/v1")
    vectors = tiny.encode(facts)
    (name,) = (one.id for one in client.models.list())
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        found = client.embeddings.create(model=name, input=facts, **options)
        rows = [
            one.embedding if isinstance(one.embedding, list) else np.frombuffer(_bytes(one.embedding), "<f4")
            for one in found.data
        ]
        np.testing.assert_allclose(rows, vectors, atol=1e-5)
        assert found.usage.total_tokens > 50
    cut = client.embeddings.create(model=name, input=facts[0], dimensions=8).data[0].embedding
    np.testing.assert_allclose(cut, vectors[0, :8] / np.linalg.norm(vectors[0, :8]), atol=1e-5)
    with pytest.raises(openai.UnprocessableEntityError, match="32"):
        client.embeddings.create(model=name, input="a", dimensions=64)


def _bytes(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


def test_a_remote_model(url, checkpoint, tiny, facts):
    """Guards against a server that our own client ranks differently with."""
    pytest.importorskip("openai")
    remote = E2Rank.remote(url, str(checkpoint))
    found, expected = remote.rerank(QUERY, facts), tiny.rerank(QUERY, facts)
    assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in expected]
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)


def test_search(client, index):
    """Guards against a search that differs from the index's own."""
    body = {"query": QUERY, "top_k": 3, "where": {"year": [2000, 2001, 2004, 2007]}}
    found = client.post("/v1/search", json=body).json()
    expected = index.search(**{"queries" if name == "query" else name: value for name, value in body.items()})
    assert [hit["id"] for hit in found["results"]] == [hit["id"] for hit in expected]
    assert [hit["fields"] for hit in found["results"]] == [hit["fields"] for hit in expected]
    assert "no_such" in error_of(client.post("/v1/search", json={"query": "q", "where": {"no_such": 1}}))


def test_without_an_index(tiny):
    """Guards against an error that does not tell how to get an index."""
    with served(lambda: (tiny, None)) as client:
        answer = client.post("/v1/search", json={"query": "q"})
        assert (answer.status_code, "e2rank serve INDEX" in error_of(answer)) == (404, True)


def test_status_paths(client):
    """Guards against a page of all paths that is not there, and health that does not name the model."""
    assert client.get("/health").json()["model"] == "tiny-qwen3"
    assert client.get("/docs").status_code == 200
    described = client.get("/openapi.json").json()
    assert set(PATHS) <= set(described["paths"])
    assert {"401", "413", "422", "429", "503"} <= set(described["paths"]["/v1/rerank"]["post"]["responses"])
    assert error_of(client.get("/nowhere")) == "Not Found"
    assert client.get("/v1/rerank").status_code == 405


def test_metrics_count_what_happens(client, facts):
    """Guards against a metric without its path, and a refusal that is not counted."""
    before = metric(client, 'e2rank_requests_total{path="/v1/rerank"'), metric(client, "e2rank_tokens_total")
    client.post("/v1/rerank", json={"query": QUERY, "documents": facts})
    client.post("/v1/rerank", json={"query": QUERY})
    after = metric(client, 'e2rank_requests_total{path="/v1/rerank"'), metric(client, "e2rank_tokens_total")
    assert after[0] - before[0] == 2
    assert after[1] - before[1] > 100
    assert metric(client, 'e2rank_requests_total{path="/v1/rerank",status="422"}') >= 1
    assert metric(client, "e2rank_waiting_requests") == 0


BAD = {  # a body, the status, and what the error says
    "not UTF-8": (b'{"query":"q","documents":["\xff"]}', 400, "JSON in UTF-8"),
    "not JSON": (b'{"query":', 400, "JSON decode error"),
    "deep": (b"[" * 200_000, 400, "JSON"),
    "deep inside": (b'{"query":"q","documents":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "JSON"),
    "a number of 5000 digits": (b'{"query":"q","documents":["a"],"top_n":' + b"9" * 5000 + b"}", 400, "JSON"),
    "a number of 1000 digits": (b'{"query":"q","documents":["a"],"top_n":' + b"9" * 1000 + b"}", 200, ""),
    "infinite": (b'{"query":"q","documents":["a"],"top_n":1e999}', 422, "finite"),
    "negative": (b'{"query":"q","documents":["a"],"top_n":-1}', 422, "greater than or equal to 0"),
    "NaN": (b'{"query":"q","documents":["a"],"document_embeddings":[[NaN]]}', 422, "NaN"),
    "half a character": (b'{"query":"q","documents":["\\ud800"]}', 422, "unicode"),
    "half a character as a name": (b'{"texts":["a"],"query":{"\\ud800":1}}', 422, "query"),
    "a list": (b"[]", 422, "valid dictionary"),
    "null": (b"null", 422, "valid dictionary"),
    "nothing": (b"", 422, "Field required"),
    "no query": (b'{"documents":["a"]}', 422, "query: Field required"),
    "documents that are numbers": (b'{"query":"q","documents":[1]}', 422, "valid string"),
    "a document without text": (b'{"query":"q","documents":[{"title":"a"}]}', 422, "text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies(client, name: str):
    """Guards against a status of 500, and an error that does not tell what is wrong."""
    body, status, text = BAD[name]
    answer = client.post("/v1/rerank", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    assert status == 200 or text in error_of(answer)


def test_a_form_instead_of_json(client):
    """Guards against a newcomer with curl -d who does not find out what is missing."""
    answer = client.post("/v1/rerank", content=b'{"query":"q","documents":[]}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422 and "Content-Type: application/json" in error_of(answer)


MANY = {
    "texts": ("/v1/rerank", {"query": "q", "texts": [""] * 1_000_000}),
    "documents": ("/v1/rerank", {"query": "q", "documents": [""] * 1_000_000}),
    "documents of a wrong kind": ("/v1/rerank", {"query": "q", "documents": [1] * 1_000_000}),
    "vectors": ("/v1/rerank", {"query": "q", "documents": [""], "document_embeddings": [[]] * 300_000}),
    "inputs": ("/v1/embeddings", {"input": [""] * 1_000_000}),
    "token ids": ("/v1/embeddings", {"input": [1] * 1_500_000}),
    "token ids of few texts": ("/v1/embeddings", {"input": [[1] * 1_500_000]}),
}


@pytest.mark.parametrize("name", MANY)
def test_a_million_values(client, name: str):
    """Guards against a million errors, and a server that looks at each value before it counts them."""
    path, body = MANY[name]
    answer = client.post(path, json=body)
    assert answer.status_code == 413
    assert "the most is" in error_of(answer) and len(answer.content) < 1000


def test_wrong_values_are_told_once(client):
    """Guards against an answer, and a memory, of as many errors as there are wrong numbers."""
    body = {"query": "q", "documents": ["a"], "document_embeddings": [["x"] * 1_000_000]}
    answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == 422 and len(answer.content) < 1000


def test_100_megabytes(client, url):
    """Guards against a body that is kept, whether it tells its size or not; the server goes on."""
    answer = client.post("/v1/rerank", content=b"x" * 100_000_000, headers=JSON)
    assert answer.status_code == 413 and "16,000,000 bytes" in error_of(answer)
    sent = []

    def parts():
        for _ in range(100):
            sent.append(1)
            yield b"x" * 1_000_000

    answer = client.post("/v1/rerank", content=parts(), headers=JSON)
    assert answer.status_code == 413
    assert client.get("/health").status_code == 200


def test_slow_senders(tiny):
    """Guards against clients that send a byte now and then, and against others that wait for them."""
    with served(lambda: (tiny, None), limits=Limits(timeout=0.5)) as client:
        address = urlsplit(str(client.base_url))
        slow = []
        for _ in range(20):
            connection = socket.create_connection((address.hostname, address.port))
            connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            slow.append(connection)
        assert client.post("/v1/rerank", json={"query": "q", "documents": ["a"]}).status_code == 200
        for connection in slow:
            connection.settimeout(30)
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
            connection.close()


def test_garbage_on_the_socket(client):
    """Guards against a protocol error that takes the server along."""
    address = urlsplit(str(client.base_url))
    for junk in (b"\x16\x03\x01\x00\xff" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/rerank HTTP/1.1\r\nContent-Len"):
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(junk)
    assert client.get("/health").status_code == 200


def test_the_queue_is_bounded(tiny, held: Held):
    """Guards against a queue without end, and a refusal that does not say when to come again."""
    body = {"input": "a"}
    with served(lambda: (tiny, None), limits=Limits(max_queue=3)) as client, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, "/v1/embeddings", json=body) for _ in range(3)]
        until(lambda: metric(client, "e2rank_waiting_requests") == 3)
        answer = client.post("/v1/embeddings", json=body)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "3 requests wait" in error_of(answer)
        assert client.get("/health").status_code == 200
        held.goes_on.set()
        assert [one.result(60).status_code for one in asked] == [200] * 3
        assert client.post("/v1/embeddings", json=body).status_code == 200


def test_a_late_answer(tiny, held: Held):
    """Guards against a client that waits for ever."""
    with served(lambda: (tiny, None), limits=Limits(timeout=0.3)) as client:
        answer = client.post("/v1/embeddings", json={"input": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "0.3 seconds" in error_of(answer)
        held.goes_on.set()


def test_too_many_tokens(tiny):
    """Guards against a text that is within the limit of bytes, and costs too much."""
    with served(lambda: (tiny, None), limits=Limits(max_tokens=50)) as client:
        answer = client.post("/v1/rerank", json={"query": "q", "documents": ["flea " * 60]})
        assert answer.status_code == 413 and "more than 50 tokens" in error_of(answer)


def test_a_client_that_hangs_up(tiny, held: Held):
    """Guards against work for clients that have left: of 96 documents, only the part that runs is computed."""
    with served(lambda: (tiny, None)) as client:
        body = json.dumps({"query": "q", "documents": [f"document {row}" for row in range(96)]}).encode()
        address = urlsplit(str(client.base_url))
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = (
                f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            held.wait()
        # The server has seen it when a request that came later is answered, but for its work.
        until(lambda: client.get("/health").status_code == 200)
        threading.Event().wait(0.1)
        held.goes_on.set()
        until(lambda: metric(client, "e2rank_waiting_requests") == 0)
        assert held.rows == [32]
        assert metric(client, 'e2rank_requests_total{path="/v1/rerank",status="499"}') == 1


def test_the_key(tiny):
    """Guards against paths that forget to ask for the key, and a client of OpenAI that cannot give it."""
    openai = pytest.importorskip("openai")
    with served(lambda: (tiny, None), key=KEY) as client:
        for path in PATHS:
            assert client.post(path, json={}).status_code == 401
        for path in ("/metrics", "/docs", "/openapi.json", "/v1/models"):
            assert client.get(path).status_code == 401
        assert client.get("/health").status_code == 200
        url = f"{str(client.base_url).rstrip('/')}/v1"
        assert len(openai.OpenAI(api_key=KEY, base_url=url).embeddings.create(model="x", input="a").data) == 1
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(api_key="wrong", base_url=url).embeddings.create(model="x", input="a")


def test_while_it_loads(tiny):
    """Guards against a server that does not answer before it is ready, and one that says it is."""
    goes_on = threading.Event()

    def load():
        assert goes_on.wait(60)
        return tiny, None

    with served(load, ready=False) as client:
        assert (client.get("/health").status_code, client.get("/health").json()) == (503, {"status": "loading"})
        answer = client.post("/v1/rerank", json={"query": "q", "documents": ["a"]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        goes_on.set()
        until(lambda: client.get("/health").status_code == 200)


def test_loading_fails(caplog):
    """Guards against a server that says for ever that it loads, and that keeps the reason to itself."""

    def load():
        raise ValueError("no such model")

    with caplog.at_level(logging.ERROR, "e2rank_st"), served(load, ready=False) as client:
        until(lambda: client.get("/health").json() == {"status": "failed"})
        assert client.get("/health").status_code == 503
        assert "cannot be loaded" in error_of(client.post("/v1/embeddings", json={"input": "a"}))
    assert "no such model" in caplog.text


def test_a_fault_of_the_server(tiny, monkeypatch: pytest.MonkeyPatch, caplog):
    """Guards against a fault that shows its inside, or closes a connection that the client uses again."""
    with served(lambda: (tiny, None)) as client:
        with monkeypatch.context() as patch:
            patch.setattr("e2rank_st.serving.service.relevance", lambda _: 1 / 0)
            answer = client.post("/v1/rerank", json={"query": "secret", "documents": ["a"]})
        assert (answer.status_code, answer.headers["connection"]) == (500, "close")
        assert "division" not in error_of(answer)
        assert client.post("/v1/rerank", json={"query": "q", "documents": ["a"]}).status_code == 200
        assert metric(client, 'e2rank_requests_total{path="/v1/rerank",status="500"}') == 1


def test_logs_hold_no_texts(client, caplog, facts):
    """Guards against texts of strangers in logs, whether they are right or wrong."""
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/rerank", json={"query": "a secret question", "documents": ["a secret answer", *facts]})
        client.post("/v1/rerank", json={"query": "a secret question", "documents": {"a secret": 1}})
        client.post("/v1/embeddings", json={"input": "a secret text " * 50})
    own = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert "secret" not in "".join(record.getMessage() for record in own)


def test_many_clients_at_once(client, tiny, facts):
    """Guards against answers that are lost, mixed up or changed when requests share forward passes."""
    vectors = tiny.encode_document(facts)
    works = []
    for row in range(48):
        query, part = f"{QUERY} {row}", facts[row % 10 :] + facts[: row % 10]
        if row % 3 == 0:
            works.append(("/v1/rerank", {"query": query, "documents": part}, tiny.rerank(query, part)))
        elif row % 3 == 1:
            body = {"query": query, "documents": facts, "document_embeddings": vectors.tolist()}
            works.append(("/rerank", body, tiny.rerank(query, facts, document_embeddings=vectors)))
        else:
            works.append(("/v1/embeddings", {"input": [query, *part]}, tiny.encode([query, *part])))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda work: client.post(work[0], json=work[1]).json(), works))
    for (path, _, expected), found in zip(works, answers, strict=True):
        if path == "/v1/embeddings":
            np.testing.assert_allclose([row["embedding"] for row in found["data"]], expected, atol=1e-5)
        else:
            in_shape(found["results"], expected)


def test_a_slow_request_does_not_hold_a_short_one(tiny, held: Held):
    """Guards against short requests that wait for the end of a long ranking."""
    documents = [f"document {row}" for row in range(32 * 20)]
    with served(lambda: (tiny, None), batching=Batching(max_tokens=1)) as client, ThreadPoolExecutor(2) as pool:
        long = pool.submit(client.post, "/v1/rerank", json={"query": "q", "documents": documents})
        held.wait()
        short = pool.submit(client.post, "/v1/embeddings", json={"input": "a"})
        until(lambda: metric(client, "e2rank_waiting_requests") == 2)
        passes = []
        short.add_done_callback(lambda _: passes.append(len(held.rows)))
        held.goes_on.set()
        assert long.result(60).status_code == short.result(60).status_code == 200
    assert len(held.rows) == 20 + 1 + 1
    assert passes[0] < 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_input_breaks_the_server(client, url):
    """Guards against a status of 500 for whatever the description of the paths allows, or does not."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error

    description = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried = []
    for operation in description.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)[: 1 + bool(operation.ok().body)]:

            @given(case=operation.ok().as_strategy(generation_mode=mode))
            @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
            def check(case):
                case.call_and_validate(checks=[not_a_server_error], timeout=60)
                tried.append(case.operation.path)

            check()
    assert set(PATHS) <= set(tried)
