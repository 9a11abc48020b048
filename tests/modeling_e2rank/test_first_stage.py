"""The first stage's scores in the final score, and the cosine to the query beside it."""

import copy
import math
from fractions import Fraction

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from sentence_transformers.util import cos_sim

from e2rank_st import E2Rank
from e2rank_st.embedding_e2rank import fuse
from tests.modeling_e2rank.rankings import QUERY, assert_same, scores

BM25 = [3.5, 12.0, 7.25, 0.0, 9.0, 9.0, 1.0, 20.0, 4.0, 2.0]


def test_fusion_in_closed_form():
    """Guards against a sample's deviation, swapped shares, and raw scores of unlike units, by numbers done by hand."""
    # [1, 2, 3] has the mean 2 and the variance 2/3; [30, 0, 0] the mean 10 and the variance 200.
    listwise, first_stage = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([30.0, 0.0, 0.0])
    a, b = math.sqrt(3 / 2), math.sqrt(2)
    for weight in (0.25, 0.5, 1.0):
        expected = [-(1 - weight) * a + weight * b, -weight * b / 2, (1 - weight) * a - weight * b / 2]
        assert fuse(listwise, first_stage, weight).tolist() == pytest.approx(expected, abs=1e-12)
    assert fuse(listwise, first_stage, 0.0) is listwise


@pytest.mark.parametrize("constant", [[0.1, 0.1, 0.1], [0.0, 0.0, 0.0], [-7.0, -7.0, -7.0]])
def test_equal_scores_count_for_nothing(constant):
    """Guards against a division by zero, and against rounding in the mean of equal numbers that is blown up."""
    rest = torch.tensor([0.3, 0.1, 0.2])
    for pair in ((torch.tensor(constant), rest), (rest, torch.tensor(constant))):
        mixed = fuse(*pair, 0.5)
        assert mixed.tolist() == pytest.approx([x / 2 for x in fuse(rest, rest, 1.0).tolist()])
    assert fuse(torch.tensor(constant), torch.tensor(constant), 0.5).tolist() == [0.0, 0.0, 0.0]
    assert fuse(torch.empty(0), torch.empty(0), 0.5).tolist() == []


def test_fusion_does_not_depend_on_the_unit():
    """Guards against an overflow or a loss of huge, tiny and shifted scores: only their standard scores count."""
    listwise, given = torch.tensor([0.1, 0.5, 0.2, 0.2]), torch.tensor([4.0, 1.0, 3.0, 3.0], dtype=torch.float64)
    expected = fuse(listwise, given, 0.5).tolist()
    for scale, shift in ((1e300, 0.0), (1e-300, 0.0), (0.001, -5.0), (1.0, 1e6)):
        assert fuse(listwise, given * scale + shift, 0.5).tolist() == pytest.approx(expected, abs=1e-9)
    assert expected[2] == expected[3], "equal pairs tie"


@pytest.mark.parametrize("order", ["given", "similarity"])
def test_rerank_mixes_both_scores(tiny: E2Rank, facts, order):
    """Guards against scores that reach another document, and against a configured weight that does nothing."""
    options = {"candidate_order": order, "num_prompt_documents": 3}
    plain = scores(tiny.rerank(QUERY, facts, **options))
    listwise = torch.tensor([plain[index] for index in range(len(facts))])
    expected = fuse(listwise, torch.tensor(BM25), 0.4)
    mixed = tiny.rerank(QUERY, facts, first_stage_scores=BM25, first_stage_weight=0.4, **options)
    assert [hit["corpus_id"] for hit in mixed] == expected.argsort(descending=True, stable=True).tolist()
    assert all(hit["score"] == pytest.approx(float(expected[hit["corpus_id"]]), abs=1e-6) for hit in mixed)
    only = tiny.rerank(QUERY, facts, first_stage_scores=BM25, first_stage_weight=1, **options)
    assert [hit["corpus_id"] for hit in only] == [7, 1, 4, 5, 2, 8, 0, 9, 6, 3], "ties keep the given order"
    configured = copy.deepcopy(tiny)
    configured.replace_listwise(first_stage_weight=0.4)
    assert configured.rerank(QUERY, facts, first_stage_scores=BM25, **options) == mixed
    assert configured.rerank(QUERY, facts, **options) == tiny.rerank(QUERY, facts, **options), "without scores: plain"


def test_scores_without_a_weight_change_nothing(tiny: E2Rank, facts):
    """Guards against fusion that nobody asked for: bit for bit the plain cosine."""
    plain = tiny.rerank(QUERY, facts)
    assert tiny.rerank(QUERY, facts, first_stage_scores=BM25) == plain
    assert tiny.rerank(QUERY, facts, first_stage_scores=BM25, first_stage_weight=0.0) == plain
    assert tiny.rerank(QUERY, facts, first_stage_weight=0) == plain


def test_many_queries_have_scores_of_their_own(tiny: E2Rank, facts):
    """Guards against a row that reaches another query: shared lists, lists of any length, empty ones, one candidate."""
    queries, reverse = [QUERY, "capital", "x", "y"], BM25[::-1]
    shared = tiny.rerank(queries[:2], facts, first_stage_scores=[BM25, reverse], first_stage_weight=0.5)
    single = [
        tiny.rerank(query, facts, first_stage_scores=row, first_stage_weight=0.5)
        for query, row in zip(queries, (BM25, reverse), strict=False)
    ]
    for one, other in zip(shared, single, strict=True):
        assert_same(one, other)
    lists = [facts, facts, [], facts[:1]]
    rows = [BM25, reverse, [], [8.0]]
    ragged = tiny.rerank(queries, lists, first_stage_scores=rows, first_stage_weight=0.5)
    for one, other in zip(ragged[:2], single, strict=True):
        assert_same(one, other)
    assert ragged[2:] == [[], [{"corpus_id": 0, "score": 0.0}]], "one candidate has no deviation"
    assert tiny.rerank(QUERY, [], first_stage_scores=[], first_stage_weight=0.5) == []
    assert tiny.rerank([], facts, first_stage_scores=[], first_stage_weight=0.5) == []


@pytest.mark.parametrize(
    "kind",
    [
        tuple, iter, np.array, lambda row: np.array(row, object), lambda row: np.array(row, np.float16), pandas.Series,
        torch.tensor, lambda row: torch.tensor(row, dtype=torch.bfloat16), pyarrow.array,
        lambda row: [torch.tensor(score) for score in row], lambda row: [Fraction(score) for score in row],
        lambda row: [int(score) if score.is_integer() else np.float32(score) for score in row],
    ],
    ids=[
        "tuple", "generator", "numpy", "objects", "float16", "pandas", "torch", "bfloat16", "arrow", "tensors",
        "fractions", "integers",
    ],
)  # fmt: skip
def test_scores_of_any_kind(tiny: E2Rank, facts, kind):
    """Guards against scores that are refused because of the library that they come from."""
    expected = tiny.rerank(QUERY, facts, first_stage_scores=BM25, first_stage_weight=0.5)
    assert tiny.rerank(QUERY, facts, first_stage_scores=kind(BM25), first_stage_weight=0.5) == expected
    many = tiny.rerank([QUERY], facts, first_stage_scores=[kind(BM25)], first_stage_weight=0.5)
    assert_same(many[0], expected)


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("q", {"first_stage_weight": 0.5}, r"first_stage_weight=0\.5 needs first_stage_scores"),
        ("q", {"first_stage_weight": 1.5}, r"first_stage_weight must be a number from 0 to 1, got 1\.5"),
        ("q", {"first_stage_weight": math.nan}, "first_stage_weight must be a number from 0 to 1, got nan"),
        ("q", {"first_stage_scores": [1.0]}, "first_stage_scores must hold one score for each candidate: got 1 for 2"),
        ("q", {"first_stage_scores": [1.0, math.nan]}, r"first_stage_scores\[1\] must be a finite number, got nan"),
        ("q", {"first_stage_scores": [-math.inf, 1.0]}, r"first_stage_scores\[0\] must be a finite number, got -inf"),
        ("q", {"first_stage_scores": [10**400, 1.0]}, r"first_stage_scores\[0\] must be a finite number"),
        ("q", {"first_stage_scores": ["1", 2]}, r"first_stage_scores\[0\] must be a finite number, got '1'"),
        ("q", {"first_stage_scores": [True, False]}, r"first_stage_scores\[0\].*got True"),
        ("q", {"first_stage_scores": [None, 1.0]}, r"first_stage_scores\[0\].*got None"),
        ("q", {"first_stage_scores": np.ma.masked_array([1.0, 2.0], [0, 1])}, "first_stage_scores.*masked array"),
        ("q", {"first_stage_scores": np.zeros((2, 2))}, r"first_stage_scores\[0\].*\[0\.0, 0\.0\]"),
        ("q", {"first_stage_scores": {"a": 1.0, "b": 2.0}}, "first_stage_scores must be a list of numbers, got dict"),
        ("q", {"first_stage_scores": 3.0}, "first_stage_scores must be a list of numbers, got float"),
        ("q", {"first_stage_scores": torch.zeros(2, device="meta")}, "first_stage_scores.*meta"),
        (["q", "r"], {"first_stage_scores": [1.0, 2.0]}, r"first_stage_scores\[0\] must be a list of numbers"),
        (["q", "r"], {"first_stage_scores": np.zeros(2)}, r"first_stage_scores\[0\] must be a list of numbers"),
        (["q", "r"], {"first_stage_scores": [[1.0, 2.0]]}, "one row for each query: got 1 for 2"),
        (["q", "r"], {"first_stage_scores": [[1, 2], [1]]}, r"first_stage_scores\[1\].*got 1 for 2"),
        (["q", "r"], {"first_stage_scores": [[1, 2], [1, math.nan]]}, r"first_stage_scores\[1\]\[1\].*got nan"),
        ("q", {"min_similarity": 1.01}, r"min_similarity must be a number from -1 to 1, got 1\.01"),
        ("q", {"min_similarity": "high"}, "min_similarity must be a number from -1 to 1, got 'high'"),
    ],
)
def test_scores_that_are_not_allowed(tiny: E2Rank, query, options, message):
    """Guards against a mix of the wrong numbers: the message names the place and the value."""
    with pytest.raises(ValueError, match=message):
        tiny.rerank(query, ["a", "b"], **options)


def test_similarity_is_the_cosine_of_query_and_document(tiny: E2Rank, facts):
    """Guards against a cosine to the prompt, which is not comparable between queries, and against a mixed-up row."""
    queries, lists = [QUERY, "capital", "x"], [facts, facts[::-1], []]
    cosines = cos_sim(tiny.encode_query(queries), tiny.encode_document(facts))
    ways = ({"candidate_order": "similarity"}, {"query_weight": 0.3}, {"min_similarity": -1})
    for way in ways:
        rankings = tiny.rerank(queries, lists, **{"candidate_order": "given", **way})
        for row, ranking in enumerate(rankings):
            for hit in ranking:
                place = hit["corpus_id"] if row == 0 else len(facts) - 1 - hit["corpus_id"]
                assert hit["similarity"] == pytest.approx(float(cosines[row][place]), abs=1e-5)
                assert type(hit["similarity"]) is float
    assert [len(ranking) for ranking in rankings] == [len(facts), len(facts), 0]


def test_a_prompt_alone_stays_one_forward_pass(tiny: E2Rank, facts, spy):
    """Guards against a query that is embedded for a value that nobody asked for."""
    vectors = tiny.encode_document(facts)
    _ = tiny.listwise.builder
    spy.shapes.clear()
    options = {"document_embeddings": vectors, "candidate_order": "given", "first_stage_scores": BM25}
    ranking = tiny.rerank(QUERY, facts, first_stage_weight=0.5, **options)
    assert len(spy.shapes) == 1
    assert all(hit.keys() == {"corpus_id", "score"} for hit in ranking)
    ranking = tiny.rerank(QUERY, facts, min_similarity=-1, **options)
    assert len(spy.shapes) == 3
    assert all(hit.keys() == {"corpus_id", "score", "similarity"} for hit in ranking)


def test_min_similarity_leaves_out_what_is_below(tiny: E2Rank, facts):
    """Guards against a threshold on the score, one that changes the ranking of the rest, and a top_k before it."""
    whole = tiny.rerank(QUERY, facts, min_similarity=-1, return_documents=True)
    bar = sorted(hit["similarity"] for hit in whole)[4]
    kept = [hit for hit in whole if hit["similarity"] >= bar]
    assert len(kept) == 6
    assert kept != whole[:6], "the premise: the best by score are not the nearest"
    options = {"return_documents": True, "min_similarity": bar}
    assert tiny.rerank(QUERY, facts, **options) == kept, "what is just at it stays"
    assert tiny.rerank(QUERY, facts, top_k=3, **options) == kept[:3]
    assert tiny.rerank(QUERY, facts, min_similarity=1) == []
    many = tiny.rerank([QUERY, QUERY], [facts, []], **options)
    assert [len(ranking) for ranking in many] == [6, 0]
