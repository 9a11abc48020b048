"""The queue: many requests share forward passes, and each gets what a call of its own would get."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.serving.queue import ForwardQueue, Job, LateError, LeftError, TokenLimitError, queued
from tests.serving.conftest import Held

QUERY = "how long do fleas live"
WAIT = 60  # seconds; reached only if a test fails


def run(queue: ForwardQueue, work, job: Job | None = None):
    with queue.running(job or Job()):
        return work()


def ids(*numbers: int) -> tuple[int, ...]:
    return numbers


def embed(queue: ForwardQueue, *sequences, job: Job | None = None):
    return run(queue, lambda: queue.embed("text", sequences, None), job)


def until_waiting(queue: ForwardQueue, count: int) -> None:
    """Until that many parts wait in the queue."""
    with queue._changed:
        assert queue._changed.wait_for(lambda: len(queue) >= count, WAIT)


def assert_same_ranking(one, other) -> None:
    assert [hit["corpus_id"] for hit in one] == [hit["corpus_id"] for hit in other]
    assert [hit["score"] for hit in one] == pytest.approx([hit["score"] for hit in other], abs=1e-5)


def test_every_answer_is_the_models(kind: E2Rank, facts):
    """Guards against prompts, prompt lengths, adapters and cut vectors that get lost behind the queue."""
    texts = [*facts, "iron [SEP] melts", "", "flea " * 100]
    vectors = kind.encode_document(texts)
    queue = ForwardQueue(kind, max_tokens=200)
    model = queued(queue)
    works = []
    for row in range(4):
        query, part = f"{QUERY} {row}", texts[row:] + texts[:row]
        works += [
            (lambda m, q=query, p=part: m.rerank(q, p), "ranking"),
            (lambda m, q=query: m.rerank(q, texts, document_embeddings=vectors, query_weight=0.5), "ranking"),
            (lambda m, q=query: m.encode_query([q, "iron"]), "vectors"),
            (lambda m, p=part: m.encode_document(p), "vectors"),
        ]
    expected = [work(kind) for work, _ in works]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda work: run(queue, lambda: work[0](model)), works))
    queue.close()
    for (_, form), one, other in zip(works, found, expected, strict=True):
        if form == "ranking":
            assert_same_ranking(one, other)
        else:
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_requests_share_a_pass(make_queue, held: Held):
    """Guards against a pass for each request, and against a text of two requests that is computed twice."""
    batches = []
    queue = make_queue(on_batch=lambda *numbers: batches.append(numbers))
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(embed, queue, ids(1))
        held.wait()
        others = [pool.submit(embed, queue, ids(2, row), ids(7, 7)) for row in range(5)]
        until_waiting(queue, 5)
        held.goes_on.set()
        first.result(WAIT)
        rows = [other.result(WAIT) for other in others]
    assert held.rows == [1, 6]
    assert batches == [(1, 1, 1), (5, 6, 12)]
    assert all((row[1] == rows[0][1]).all() for row in rows)
    assert len({tuple(row[0].tolist()) for row in rows}) == 5, "nobody gets the vector of somebody else"


def test_tokens_bound_a_pass(make_queue, held: Held):
    """Guards against a pass that outgrows the memory, and against a large part that never gets its turn."""
    batches = []
    queue = make_queue(max_tokens=10, on_batch=lambda *numbers: batches.append(numbers))
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(embed, queue, ids(1))]
        held.wait()
        for place, length in enumerate((4, 6, 1, 30, 2)):
            futures.append(pool.submit(embed, queue, (place,) * length))
            until_waiting(queue, place + 1)
        held.goes_on.set()
        for future in futures:
            future.result(WAIT)
    assert [tokens for _, _, tokens in batches] == [1, 10, 1, 30, 2]


def test_one_token_a_batch_switches_batching_off(make_queue, held: Held):
    """Guards against a comparison with and without batching that compares nothing."""
    queue = make_queue(max_tokens=1, wait=0.0)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(embed, queue, ids(row, 1, 2)) for row in range(5)]
        held.wait()
        until_waiting(queue, 4)
        held.goes_on.set()
        for future in futures:
            future.result(WAIT)
    assert held.rows == [1] * 5


def test_short_requests_pass_a_long_one(make_queue, tiny, held: Held):
    """Guards against a large ranking that holds every other request until its end."""
    queue = make_queue(max_tokens=1)
    model, ended = queued(queue), []
    documents = [f"document {row}" for row in range(32 * 6)]
    with ThreadPoolExecutor(4) as pool:
        long = pool.submit(run, queue, lambda: model.rerank(QUERY, documents))
        long.add_done_callback(lambda _: ended.append("long"))
        held.wait()
        short = pool.submit(embed, queue, ids(3, 4))
        short.add_done_callback(lambda _: ended.append(f"short after {len(held.rows)} passes"))
        until_waiting(queue, 1)
        held.goes_on.set()
        long.result(WAIT)
    assert ended[-1] == "long"
    assert ended[0].startswith("short after") and int(ended[0].split()[2]) <= 4, "its own, one before and one after"
    assert len(held.rows) == 6 + 1 + 1


def test_a_pass_waits_for_those_that_run(make_queue, held: Held):
    """Guards against a wait of some milliseconds that is served to nobody, and one that never ends."""
    held.goes_on.set()
    queue = make_queue(wait=WAIT)
    entered, goes_on = threading.Event(), threading.Event()

    def slow():
        entered.set()
        assert goes_on.wait(WAIT)
        return queue.embed("text", [ids(2)], None)

    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(run, queue, slow)
        assert entered.wait(WAIT)
        first = pool.submit(embed, queue, ids(1))
        until_waiting(queue, 1)
        assert held.rows == []
        goes_on.set()
        first.result(WAIT), second.result(WAIT)
    assert held.rows == [2]
    embed(queue, ids(3))  # alone, and so at once
    quick = make_queue(wait=0.001)
    with ThreadPoolExecutor(2) as pool:
        entered.clear(), goes_on.clear()
        second = pool.submit(run, queue, slow)
        with quick.running(Job()):  # does nothing for a long time
            embed(quick, ids(4))
        goes_on.set()
        second.result(WAIT)


@pytest.mark.parametrize("moment", ["waiting", "computing", "before"])
def test_a_client_that_leaves_is_dropped(make_queue, held: Held, moment: str):
    """Guards against work for nobody: what waits is not computed, and what follows is not begun."""
    queue, job = make_queue(max_tokens=1), Job()
    model, documents = queued(queue), [f"document {row}" for row in range(32 * 3)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, queue, ids(1)) if moment == "waiting" else None
        if first is not None:
            held.wait()
        if moment == "before":
            job.leave()
        left = pool.submit(run, queue, lambda: model.rerank(QUERY, documents), job)
        if moment == "computing":
            held.wait()
        elif moment == "waiting":
            until_waiting(queue, 1)
        job.leave()
        if moment != "computing":
            with pytest.raises(LeftError):
                left.result(WAIT)
        held.goes_on.set()
        with pytest.raises(LeftError):
            left.result(WAIT)
        if first is not None:
            first.result(WAIT)
        embed(queue, ids(5))
    assert held.rows == {"waiting": [1, 1], "computing": [32, 1], "before": [1]}[moment]


def test_a_late_request_is_dropped(make_queue, held: Held):
    """Guards against an answer that comes after its time, and work for it."""
    queue = make_queue(max_tokens=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, queue, ids(1))
        held.wait()
        with pytest.raises(LateError, match=r"more than 0\.01 seconds"):
            embed(queue, ids(2), job=Job(seconds=0.01))
        held.goes_on.set()
        first.result(WAIT)
        embed(queue, ids(3))
    assert held.rows == [1, 1]


def test_too_many_tokens(make_queue, held: Held):
    """Guards against a request that costs more than it may."""
    held.goes_on.set()
    queue, job = make_queue(), Job(max_tokens=4)
    with queue.running(job):
        queue.embed("text", [ids(1, 2), ids(3, 4)], None)
        with pytest.raises(TokenLimitError, match="more than 4 tokens"):
            queue.embed("text", [ids(5)], None)
    assert (held.rows, job.tokens) == ([2], 5)


def test_a_pass_that_fails(make_queue, tiny, held: Held):
    """Guards against a queue that dies with one request."""
    queue = make_queue()
    held.goes_on.set()
    with pytest.raises(IndexError):
        embed(queue, ids(10**6))
    assert embed(queue, ids(1)).shape == (1, 32)


def test_closing_computes_what_waits(make_queue, held: Held):
    """Guards against a request that hangs for ever, or is lost, when the server ends."""
    queue = make_queue(max_tokens=1)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(embed, queue, ids(1))]
        held.wait()
        futures += [pool.submit(embed, queue, ids(row)) for row in (2, 3)]
        until_waiting(queue, 2)
        closing = pool.submit(queue.close)
        held.goes_on.set()
        closing.result(WAIT)
        assert all(future.result(WAIT).shape == (1, 32) for future in futures)
    with pytest.raises(RuntimeError, match="shutting down"):
        embed(queue, ids(4))


def test_the_cache_saves_passes(make_queue, tiny, facts, held: Held):
    """Guards against a cache that changes scores, or that is on by default."""
    held.goes_on.set()
    expected = tiny.rerank(QUERY, facts)
    passes = [2, 8, 1]  # ten documents in batches of similar lengths, and the prompt
    for size, calls in ((0, 2), (10**6, 1)):
        queue = make_queue(cache_bytes=size)
        model = queued(queue)
        held.rows.clear()
        for _ in range(2):
            job = Job()
            assert_same_ranking(run(queue, lambda m=model: m.rerank(QUERY, facts), job), expected)
            assert job.tokens > 100, "usage tells the texts that were read, known or not"
        assert held.rows == passes * calls


def test_the_model_behind_does_not_change(make_queue, tiny, held: Held):
    """Guards against a server that changes the prompts or the settings of the model that it was given."""
    held.goes_on.set()
    before = {name: getattr(tiny.listwise, name) for name in tiny.listwise.config_keys}
    model = queued(make_queue())
    assert {name: getattr(model.listwise, name) for name in model.listwise.config_keys} == before
    assert (model.prompts, model.truncate_dim, model.name) == (tiny.prompts, tiny.truncate_dim, tiny.name)
    assert tiny.rerank.__self__ is not model and type(tiny[0]) is not type(model[0])
