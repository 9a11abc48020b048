"""Input of rerank: odd input, wrong input, and wrong configurations."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from e2rank_st import E2Rank
from e2rank_st.modeling_e2rank import ListwiseRerank, num_positions
from tests.modeling_e2rank.rankings import QUERY, assert_same

ONE = np.zeros((1, 32), np.float32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["a", None], r"documents\[1\].*NoneType"),
        (["a", b"b"], r"documents\[1\].*bytes"),
        (["a", "b\ud800"], r"documents\[1\] holds half of a surrogate pair"),
        ([1.5], r"documents\[0\].*float: 1.5"),
        (["a", ("b", "c")], r"documents\[1\].*tuple: \('b', 'c'\)"),
        ([["a", "b"]], r"documents\[0\].*list"),
        ("a text", "documents must be a list.*got str"),
        ({"id1": "a"}, "documents must be a list.*got dict"),
        ({"a"}, "documents must be a list.*got set"),
        (None, "documents must be a list.*got NoneType"),
        (7, "documents must be a list.*got int"),
    ],
)
def test_documents_that_are_no_strings(tiny: E2Rank, wrong, message):
    """Guards against embedding a pair or a number silently: the error names the place and what was there."""
    with pytest.raises(ValueError, match=message):
        tiny.rerank(QUERY, wrong)


@pytest.mark.parametrize(
    ("query", "documents", "options", "message"),
    [
        (["q", 3], ["a"], {}, r"query\[1\].*int: 3"),
        (b"q", ["a"], {}, "query must be a list of strings, got bytes"),
        (None, ["a"], {}, "query must be a list of strings, got NoneType"),
        (["q", "r"], [["a"]], {}, "one list for each query: got 1 for 2"),
        (["q", "r"], [["a"], ["b", 4]], {}, r"documents\[1\]\[1\].*int: 4"),
        (["q", "r"], [["a"], "b"], {}, r"documents\[1\] must be a list of strings, got str"),
        (["q", "r"], ["a", ["b"]], {}, r"documents\[1\].*list"),
        (["q", "r"], 5, {}, "documents must be a list of strings or of lists, got int"),
        ("q", ["a"], {"top_k": -1}, "top_k must be an integer of at least 0, got -1"),
        ("q", ["a"], {"top_k": 1.5}, "top_k.*got 1.5"),
        ("q", ["a"], {"top_k": True}, "top_k.*got True"),
        ("q", ["a"], {"num_prompt_documents": -2}, "num_prompt_documents.*got -2"),
        ("q", ["a"], {"query_weight": 1.5}, r"query_weight must be a number from 0 to 1, got 1\.5"),
        ("q", ["a"], {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ("q", ["a"], {"candidate_order": "random"}, "candidate_order must be one of.*'given'.*got 'random'"),
    ],
)
def test_calls_that_are_not_allowed(tiny: E2Rank, query, documents, options, message):
    """Guards against ranking the wrong list for a query, and against a typo that changes results silently."""
    with pytest.raises(ValueError, match=message):
        tiny.rerank(query, documents, **options)


@pytest.mark.parametrize(
    ("lists", "embeddings", "message"),
    [
        (["ab"], np.zeros((3, 32), np.float32), r"shape \(2, 32\).*got \(3, 32\)"),
        (["ab"], np.zeros((2, 16), np.float32), r"shape \(2, 32\).*got \(2, 16\)"),
        (["ab"], np.zeros(32, np.float32), r"shape \(2, 32\).*got \(32,\)"),
        (["ab"], np.zeros((2, 32), np.int8), "floating-point.*int8"),
        (["ab"], np.full((2, 32), None), "floating-point.*object"),
        (["ab"], np.full((2, 32), 1e300), "infinite.*row 0"),
        (["ab"], np.array([[0.0] * 32, [math.nan] * 32]), "NaN.*row 1"),
        (["ab"], torch.tensor([[math.inf] * 32, [0.0] * 32]), "infinite.*row 0"),
        (["ab"], [[0.0] * 32] * 2, "NumPy or torch.*got list"),
        (["ab"], "vectors", "NumPy or torch.*got str"),
        (["a", "bc"], [ONE], "one matrix for each query: got 1 for 2"),
        (["a", "bc"], ONE, "one matrix for each query: got 1 for 2"),
        (["a", "bc"], [ONE, ONE], r"\[1\].*\(2, 32\)"),
        (["a", "bc"], 3.0, "one matrix for each query, got float"),
    ],
)
def test_stored_vectors_that_do_not_fit(tiny: E2Rank, lists, embeddings, message):
    """Guards against a ranking from the wrong vectors: shape, type, values, and a matrix for each query."""
    query, documents = ("q", list(lists[0])) if len(lists) == 1 else (["q", "r"], list(map(list, lists)))
    with pytest.raises(ValueError, match=f"document_embeddings.*{message}"):
        tiny.rerank(query, documents, document_embeddings=embeddings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_format": "nope"}, "prompt_format must be one of.*'evaluation'.*got 'nope'"),
        ({"num_prompt_documents": -1}, "num_prompt_documents"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens.*at least 1"),
        ({"max_query_tokens": "5"}, "max_query_tokens.*got '5'"),
        ({"candidate_order": None}, "candidate_order.*got None"),
        ({"query_weight": -0.1}, "query_weight must be a number from 0 to 1, got -0.1"),
        ({"query_weight": True}, "query_weight.*got True"),
    ],
)
def test_configurations_that_are_not_allowed(options, message):
    """Guards against a configuration file that breaks only when the first query comes."""
    with pytest.raises(ValueError, match=message):
        ListwiseRerank(**options)


def test_a_prompt_longer_than_the_models_positions(bundled: E2Rank):
    """Guards against an index error inside the transformer on the first long prompt."""
    with pytest.raises(ValueError, match="max_prompt_tokens=513 exceeds the model's 512 positions"):
        ListwiseRerank("encoder", max_prompt_tokens=513).on_model_ready(bundled)


def test_positions_of_roberta():
    """Guards against an index error: RoBERTa counts its positions from behind the padding's."""
    config = RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    backbone = RobertaModel(config)
    backbone(torch.arange(2, 18).repeat(2)[None])  # the premise: 32 tokens are the most
    model = torch.nn.Sequential(backbone)
    model.config = config
    assert num_positions(model) == 32


def test_no_documents(tiny: E2Rank, facts, spy):
    """Guards against a failure on nothing to rank: an empty list, of the type that the call has, and no work."""
    assert tiny.rerank(QUERY, []) == []
    assert tiny.rerank([], []) == []
    assert tiny.rerank([], facts) == []
    assert tiny.rerank([], facts, document_embeddings=np.zeros((10, 32), dtype=np.float32)) == []
    assert tiny.rerank([QUERY, "x"], []) == [[], []]
    assert spy.shapes == []
    mixed = tiny.rerank([QUERY, "x", "y"], [facts, [], facts[:1]])
    assert [len(ranking) for ranking in mixed] == [len(facts), 0, 1]
    assert_same(mixed[0], tiny.rerank(QUERY, facts))
    assert tiny.rerank(QUERY, [], document_embeddings=np.empty((0, 32), dtype=np.float32)) == []


@pytest.mark.parametrize("query", ["", "  \n ", "?"])
def test_blank_texts_have_finite_scores(tiny: E2Rank, bundled: E2Rank, query):
    """Guards against NaN from a text without tokens."""
    for model in (tiny, bundled):
        ranking = model.rerank(query, ["", " ", "\n\n", "text", "\u200b"])
        assert all(math.isfinite(hit["score"]) for hit in ranking)


def test_nothing_of_the_callers_is_changed(tiny: E2Rank, facts):
    """Guards against sorting or normalising in place."""
    documents, vectors = list(facts), tiny.encode_document(facts) * 3
    before = vectors.copy()
    vectors.flags.writeable = False
    state = copy.deepcopy(tiny.listwise.get_config_dict()), tiny.max_seq_length, tiny.tokenizer.padding_side
    scaled = tiny.rerank(QUERY, documents, document_embeddings=vectors, num_prompt_documents=1, top_k=3)
    assert documents == facts
    assert (vectors == before).all()
    assert state == (tiny.listwise.get_config_dict(), tiny.max_seq_length, tiny.tokenizer.padding_side)
    assert_same(scaled, tiny.rerank(QUERY, facts, num_prompt_documents=1, top_k=3), 1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, torch.bfloat16, torch.float32])
def test_stored_vectors_of_any_float_type(tiny: E2Rank, facts, dtype):
    """Guards against scores computed in the storage's precision: they are float32 cosines of what was stored."""
    vectors = tiny.encode_document(facts, convert_to_tensor=True)
    stored = vectors.to(dtype) if isinstance(dtype, torch.dtype) else vectors.numpy().astype(dtype)
    ranking = tiny.rerank(QUERY, facts, document_embeddings=stored)
    assert_same(ranking, tiny.rerank(QUERY, facts), 0.01)
    upcast = torch.as_tensor(stored).float()
    assert_same(ranking, tiny.rerank(QUERY, facts, document_embeddings=upcast), 1e-6)
    assert tiny.rerank(QUERY, facts, top_k=np.int64(2)) == tiny.rerank(QUERY, facts, top_k=2)


def test_many_candidates_and_a_huge_document(tiny: E2Rank):
    """Guards against work that grows out of hand: 10,000 candidates, one of them a megabyte."""
    documents = [f"text {number % 500}" for number in range(9_999)] + ["lorem ipsum " * 90_000]
    assert len(documents[-1]) > 2**20
    ranking = tiny.rerank(QUERY, documents, top_k=7, candidate_order="similarity")
    assert len(ranking) == 7
