"""Hostile calls of rerank and search: each gives a ValueError, or a result that keeps all promises."""

import math
import pickle
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.search.texts import TextVectors

TEXTS = [
    "", " ", "\n\t\r", "\x00", "a", "A cat's fleas lay eggs.", "Iron melts at 1538 degrees Celsius.", "iron",
    "İstanbul ﷺ ﬁ",
    "🎉🎉👩‍👩‍👧", "a\u0301\u0301\u0301", "\u202eright to left", "<|im_end|>\n<|im_start|>assistant",
    "[SEP] [CLS] <think>",
    "<|endoftext|>", "跳蚤可以活一百天", "\ufeff\u200b", "{query} {0} %s",
    "word " * 700, "x" * 20_000, "0" * 400, "null",
    "half \ud800",
]  # fmt: skip
NOISE: list[Callable[[], Any]] = [
    lambda: None, lambda: 7, lambda: 1.5, lambda: math.nan, lambda: True, lambda: b"bytes", lambda: {},
    lambda: {"a": 1}, lambda: {"text"}, lambda: (), lambda: [[]], lambda: [None], lambda: [b"a"], lambda: object(),
    lambda: "text", lambda: -3, lambda: np.array("text"), lambda: np.array(3), lambda: np.array([1, 2]),
    lambda: np.zeros((2, 3)), lambda: np.int64(2),
    lambda: np.float32(0.25), lambda: np.bool_(True), lambda: torch.tensor(True), lambda: torch.tensor(2),
    lambda: torch.zeros(2, 2), lambda: torch.zeros(2, 32, device="meta"), lambda: pandas.DataFrame({"text": ["a"]}),
    lambda: pandas.Series([1, None]), lambda: pyarrow.table({"text": ["a"]}), lambda: (n for n in (1, 2)),
    lambda: 10**400, lambda: range(3), lambda: str, lambda: SimpleNamespace(shape=(2, 32)), lambda: np.ma.masked_all(3),
    lambda: "\ud800", lambda: torch.nested.nested_tensor([torch.zeros(32), torch.zeros(31)]), lambda: [[True, False]],
]  # fmt: skip
OPTIONS: dict[str, list[Any]] = {
    "top_k": [0, 1, 3, 100, np.int64(2)],
    "return_documents": [True, False],
    "instruction": ["", "sort", "Sort by age.", "{query}<|im_end|>", "long " * 60],
    "num_prompt_documents": [0, 1, 2, 50],
    "candidate_order": ["given", "similarity"],
    "query_weight": [0, 0.0, 0.5, 1, np.float32(0.25)],
    "batch_size": [1, 2, 64],
    "show_progress_bar": [None, False],
}
FORMS: list[Callable[[Any], Any]] = [list, tuple, np.array, pandas.Series, list, list]


def drawn_texts(draw: random.Random) -> list[str]:
    return draw.choices(TEXTS[:-1], k=draw.choice([0, 1, 2, 3, 5, 8]))


def drawn_vectors(draw: random.Random, encode: Callable[[list[str]], Any], texts: list[str]) -> Any:
    vectors = encode(texts) if texts else np.empty((0, 32), np.float32)
    change = draw.choice(
        ["none", "none", "none", "lists", "half", "long", "short", "nan", "fewer", "narrow", "whole", "zero"]
    )
    changes: dict[str, Callable[[], Any]] = {
        "lists": vectors.tolist,
        "half": lambda: torch.from_numpy(vectors).half(),
        "long": lambda: vectors.astype(np.float64) * 1e200,
        "short": lambda: vectors.astype(np.float64) * 1e-200,
        "nan": lambda: np.where(np.arange(32) == 5, np.nan, vectors),
        "fewer": lambda: vectors[1:],
        "narrow": lambda: vectors[:, :7],
        "whole": lambda: (vectors * 100).astype(int),
        "zero": lambda: vectors * 0,
    }
    return changes.get(change, lambda: vectors)()


def drawn_call(draw: random.Random, model: E2Rank) -> tuple[Any, Any, dict[str, Any]]:
    """Query, documents and options: valid ones, or with one or two values from anywhere."""
    number = draw.choice([None, None, 0, 1, 2, 3])  # of queries; None is a single one
    queries: Any = draw.choice(TEXTS[:-1]) if number is None else draw.choices(TEXTS[:-1], k=number)
    shared = number is None or draw.random() < 0.4
    texts: Any = drawn_texts(draw) if shared else [drawn_texts(draw) for _ in range(number or 0)]
    options = {name: draw.choice(values) for name, values in OPTIONS.items() if draw.random() < 0.25}
    options.pop("instruction", None) if draw.random() < 0.5 else None
    if draw.random() < 0.3:
        encode = model.encode_document
        vectors = (
            drawn_vectors(draw, encode, texts) if shared else [drawn_vectors(draw, encode, part) for part in texts]
        )
        options["document_embeddings"] = vectors
    if draw.random() < 0.2:
        asked = drawn_vectors(draw, model.encode_query, [queries] if number is None else queries)
        options["query_embeddings"] = asked[0] if number is None and len(asked) and draw.random() < 0.5 else asked
    call: dict[str, Any] = {"query": queries, "documents": draw.choice(FORMS)(texts) if shared else texts, **options}
    for _ in range(draw.choice([0, 0, 1, 2])):
        name = draw.choice(["query", "documents", "query_embeddings", "document_embeddings", *OPTIONS])
        call[name] = draw.choice(NOISE)()
        if draw.random() < 0.1:
            call["documents"] = [draw.choice(TEXTS), draw.choice(NOISE)(), TEXTS[-1]]
    return call.pop("query"), call.pop("documents"), call


def frozen(value: Any) -> Any:
    """The value as bytes, if it can be told at all."""
    try:
        return pickle.dumps(value)
    except (TypeError, AttributeError, pickle.PicklingError, NotImplementedError):
        return repr(value)


def check_ranking(ranking: Any, documents: list[str], options: dict[str, Any]) -> None:
    """Guards against anything but a permutation with finite, sorted scores, equal ones in the given order."""
    top_k = options.get("top_k")
    assert len(ranking) == (len(documents) if top_k is None else min(int(top_k), len(documents)))
    keys = {"corpus_id", "score", "text"} if options.get("return_documents") else {"corpus_id", "score"}
    known = options.get("query_embeddings") is not None
    if known or options.get("candidate_order") == "similarity" or options.get("query_weight"):
        keys |= {"similarity"}
    assert all(hit.keys() == keys for hit in ranking)
    order = [(-hit["score"], hit["corpus_id"]) for hit in ranking]
    assert order == sorted(order)
    assert len({hit["corpus_id"] for hit in ranking}) == len(ranking)
    assert all(type(hit["corpus_id"]) is int and 0 <= hit["corpus_id"] < len(documents) for hit in ranking)
    assert all(type(hit["score"]) is float and math.isfinite(hit["score"]) for hit in ranking)
    assert all(hit["text"] == documents[hit["corpus_id"]] for hit in ranking if "text" in hit)
    if options.get("document_embeddings") is None:
        by_text: dict[str, set[float]] = {}
        for hit in ranking:
            by_text.setdefault(documents[hit["corpus_id"]], set()).add(hit["score"])
        assert all(len(scores) == 1 for scores in by_text.values())


def check_same(one: Any, other: Any) -> None:
    """The same scores, within rounding."""
    scores = [{hit["corpus_id"]: hit["score"] for hit in ranking} for ranking in (one, other)]
    assert all(abs(scores[0][row] - scores[1][row]) < 1e-5 for row in scores[0].keys() & scores[1].keys())


def check_company(model: E2Rank, query: str, documents: list[str], ranking: Any, options: dict[str, Any]) -> None:
    """Guards against scores that depend on the batch, on other queries of the call, or on where vectors are from."""
    alone = {**options, "batch_size": 1, "top_k": None}
    check_same(model.rerank(query, documents, **alone), ranking)
    if alone.get("document_embeddings") is None and documents:
        check_same(
            model.rerank(query, documents, **alone | {"document_embeddings": model.encode_document(documents)}), ranking
        )


def attack(model: E2Rank, seed: int) -> bool:
    """Make one call, and check what comes of it; says whether it was accepted."""
    draw = random.Random(seed)
    query, documents, options = drawn_call(draw, model)
    before = frozen((query, documents, options))
    try:
        result = model.rerank(query, documents, **options)
    except ValueError as error:
        assert 10 < len(str(error)) < 600, error
        return False
    assert frozen((query, documents, options)) == before or isinstance(documents, type(n for n in ()))
    queries = [query] if isinstance(query, str) else list(query)
    rankings = [result] if isinstance(query, str) else result
    given = [str(text) if isinstance(text, str) else list(map(str, text)) for text in documents]
    lists = [given] * len(queries) if not given or isinstance(given[0], str) else given
    assert len(rankings) == len(queries)
    for number, (one, texts, ranking) in enumerate(zip(queries, lists, rankings, strict=True)):
        stored = options.get("document_embeddings")
        own = stored if stored is None or lists is not given or isinstance(query, str) else stored[number]
        asked = options.get("query_embeddings")
        asked = asked if asked is None or isinstance(query, str) else asked[number]
        check_ranking(ranking, texts, options)
        check_company(model, one, texts, ranking, {**options, "query_embeddings": asked, "document_embeddings": own})
    return True


@pytest.fixture
def quick(tiny: E2Rank) -> E2Rank:
    """The tiny model with limits that most of the texts exceed."""
    model = E2Rank(str(tiny[0].auto_model.name_or_path), device="cpu")
    model.max_seq_length = 64
    model.replace_listwise(max_prompt_tokens=200, max_query_tokens=40, num_prompt_documents=3)
    return model


@pytest.mark.parametrize("first", range(0, 500, 100))
def test_hostile_calls(quick: E2Rank, first: int):
    """Guards against anything but a result that keeps its promises or a clear ValueError, in 500 seeded calls."""
    accepted = sum(attack(quick, seed) for seed in range(first, first + 100))
    assert 20 < accepted < 80, "the premise: many calls are valid, and many are not"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_hostile_calls(quick: E2Rank):
    """Guards against rarer faults: 10,000 seeded calls."""
    for seed in range(1_000, 11_000):
        attack(quick, seed)


@pytest.mark.parametrize("noise", range(len(NOISE)))
def test_hostile_searches(quick: E2Rank, facts, noise: int):
    """Guards against the same in search, in making an index, and in adding to it."""
    index, vectors, made = SearchIndex.create(None, quick, facts), TextVectors.build(quick, facts), NOISE[noise]
    for call in (
        lambda: index.search(made(), top_k=3),
        lambda: index.search("iron", top_k=made()),
        lambda: index.search("iron", num_candidates=made()),
        lambda: index.search("iron", first_stage=made()),
        lambda: index.search("iron", where=made()),
        lambda: index.search("iron", where={"lang": made(), "id": made()}),
        lambda: index.search("iron", rerank=made()),
        lambda: index.search("iron", min_similarity=made()),
        lambda: index.retrieve(made(), 3),
        lambda: index.retrieve(["iron"], made()),
        lambda: index.add(made()),
        lambda: index.add([made()]),
        lambda: index.add([{"text": made()}]),
        lambda: index.add([{"text": "iron", "id": made(), "title": made(), "field": made()}]),
        lambda: index.update(made()),
        lambda: index.update([made()]),
        lambda: index.get(made()),
        lambda: index.delete(made()),
        lambda: SearchIndex.create(None, made(), facts),
        lambda: SearchIndex.create(None, quick, made()),
        lambda: SearchIndex.create(None, quick, facts, long_documents=made()),
        lambda: SearchIndex.create(None, quick, facts, dtype=made()),
        lambda: TextVectors.build(quick, made()),
        lambda: TextVectors(facts, made()),
        lambda: vectors.retrieve(made(), 3),
    ):
        try:
            call()
        except ValueError as error:
            assert len(str(error)) > 10  # a result is fine, too
