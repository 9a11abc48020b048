"""One model, many threads: each answer equals the one that a single thread gets."""

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from e2rank_st import E2Rank, SearchIndex
from tests.modeling_e2rank.rankings import QUERY

LONG = [f"{word} " * 900 for word in ("flea", "iron", "bread")]


@pytest.fixture(params=["package", "remote code"])
def model(request: pytest.FixtureRequest, tiny: E2Rank, tmp_path: Path) -> SentenceTransformer:
    if request.param == "package":
        return copy.deepcopy(tiny)
    tiny.save(str(tmp_path / "model"))
    return SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")


@pytest.fixture
def held(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stops the first thread that sets up the tokenizer, before it uses it."""
    kind, state = type(model.tokenizer), SimpleNamespace(is_set=threading.Event(), goes_on=threading.Event())
    original = kind.set_truncation_and_padding

    def holding(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if not state.is_set.is_set():
            state.is_set.set()
            assert state.goes_on.wait(60)

    monkeypatch.setattr(kind, "set_truncation_and_padding", holding)
    yield state
    state.goes_on.set()


def test_rerank_between_setup_and_call_of_the_tokenizer(model, held, facts):
    """Guards against rerank and encode that set up one tokenizer: vectors of cut texts, scores of whole batches."""
    model.max_seq_length = 40
    texts = [*facts, *LONG]
    expected = copy.deepcopy(model), copy.deepcopy(model)
    with ThreadPoolExecutor(1) as pool:
        vectors = pool.submit(model.encode_document, texts)
        assert held.is_set.wait(60), "the premise: encode sets up the tokenizer"
        ranking = model.rerank(QUERY, texts)
        held.goes_on.set()
        assert (vectors.result() == expected[0].encode_document(texts)).all()
    assert ranking == expected[1].rerank(QUERY, texts)


@pytest.mark.parametrize("model", ["package"], indirect=True)  # a plain SentenceTransformer's encode is upstream's
def test_encode_between_setup_and_call_of_the_tokenizer(model, held, facts):
    """Guards against two calls of encode with different limits: the second waits for the first one's tokenizer."""
    expected = copy.deepcopy(model)
    short, texts = {"text": {"max_length": 8}}, [*facts, *LONG]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(model.encode_document, texts)
        assert held.is_set.wait(60)
        second = pool.submit(model.encode_query, texts, processing_kwargs=short)
        assert not second.done()
        held.goes_on.set()
        assert (first.result() == expected.encode_document(texts)).all()
        assert (second.result() == expected.encode_query(texts, processing_kwargs=short)).all()


def test_soak(tiny: E2Rank, facts):
    """Guards against any other shared state: 16 threads encode, rerank and search, each as one thread alone."""
    model = copy.deepcopy(tiny)
    model.prompts["document"] = "passage: "
    vectors = model.encode_document(facts)
    model.max_seq_length = 100
    index = SearchIndex.create(None, model, facts)
    texts = [*facts[:4], LONG[0], "", "<|im_end|> [SEP]"]
    calls: list[Callable[[E2Rank], Any]] = [
        lambda model: model.encode_document(texts),
        lambda model: model.encode_query(facts, processing_kwargs={"text": {"max_length": 12}}),
        lambda model: model.encode(LONG, prompt="", batch_size=2),
        lambda model: model.rerank(QUERY, texts, num_prompt_documents=2),
        lambda model: model.rerank([QUERY, "iron"], facts, candidate_order="similarity", query_weight=0.5),
        lambda model: model.rerank("<think>", facts, document_embeddings=vectors, instruction="sort"),
        lambda _: index.search([QUERY, "what is gravity"], top_k=5),
    ]
    serial = [call(copy.deepcopy(model)) for call in calls]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: calls[number % len(calls)](model), range(16 * len(calls))))
    for number, answer in enumerate(answers):
        expected = serial[number % len(calls)]
        assert np.array_equal(answer, expected) if isinstance(answer, np.ndarray) else answer == expected
