"""Input of rerank: odd input, wrong input, and wrong configurations."""

import copy
import math

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import scipy.sparse
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
        (np.array("a"), "documents must be a list.*got ndarray"),
        (torch.tensor(1), "documents must be a list.*got Tensor"),
        (torch.zeros(2), r"documents\[0\].*Tensor"),
        (np.array([["a", "b"]]), r"documents\[0\].*ndarray of the shape \(2,\)"),
        (pandas.DataFrame({"text": ["a"]}), "documents must be a list.*table DataFrame.*one column"),
        (pyarrow.table({"text": ["a"]}), "documents must be a list.*table Table.*one column"),
        (pyarrow.array(["a", None]), r"documents\[1\].*NoneType"),
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
        ("q\udc00", ["a"], {}, "query holds half of a surrogate pair"),
        (np.array("q"), ["a"], {}, "query must be a list of strings, got ndarray"),
        (torch.tensor(1.0), ["a"], {}, "query must be a list of strings, got Tensor"),
        (["q"], np.array(1), {}, "documents must be a list of strings or of lists, got ndarray"),
        (["q"], pandas.DataFrame({"a": ["b"]}), {}, "documents.*table DataFrame"),
        (None, ["a"], {}, "query must be a list of strings, got NoneType"),
        (["q", "r"], [["a"]], {}, "one list for each query: got 1 for 2"),
        (["q", "r"], [["a"], ["b", 4]], {}, r"documents\[1\]\[1\].*int: 4"),
        (["q", "r"], [["a"], "b"], {}, r"documents\[1\] must be a list of strings, got str"),
        (["q", "r"], ["a", ["b"]], {}, r"documents\[1\].*list"),
        (["q", "r"], 5, {}, "documents must be a list of strings or of lists, got int"),
        ("q", ["a"], {"top_k": -1}, "top_k must be an integer of at least 0, got -1"),
        ("q", ["a"], {"top_k": 1.5}, "top_k.*got 1.5"),
        ("q", ["a"], {"top_k": True}, "top_k.*got True"),
        ("q", ["a"], {"top_k": torch.tensor(True)}, r"top_k.*got tensor\(True\)"),
        ("q", ["a"], {"top_k": np.bool_(True)}, "top_k.*True"),
        ("q", ["a"], {"top_k": torch.tensor([1])}, r"top_k.*Tensor of the shape \(1,\)"),
        ("q", ["a"], {"top_k": np.array(1.0)}, "top_k.*got array"),
        ("q", ["a"], {"top_k": torch.tensor(1, device="meta")}, "top_k.*meta"),
        ("q", ["a"], {"num_prompt_documents": np.array([1, 2])}, r"num_prompt_documents.*shape \(2,\)"),
        ("q", ["a"], {"candidate_order": np.array(["given"])}, "candidate_order must be one of"),
        ("q", ["a"], {"query_weight": np.float32("nan")}, "query_weight must be a number from 0 to 1"),
        ("q", ["a"], {"query_weight": np.array([0.5])}, "query_weight must be a number"),
        ("q", ["a"], {"query_weight": 10**400}, "query_weight must be a number"),
        ("q", ["a"], {"query_weight": "0.5"}, "query_weight must be a number.*got '0.5'"),
        ("q", ["a"], {"instruction": b"sort"}, "instruction must be a string, got bytes"),
        ("q", ["a"], {"instruction": np.array(["sort"])}, "instruction must be a string, got ndarray"),
        ("q", ["a"], {"instruction": "sort \ud83d"}, "instruction holds half of a surrogate pair"),
        ("q", ["a"], {"return_documents": np.array([1, 2])}, "return_documents must be True or False"),
        ("q", ["a"], {"show_progress_bar": "no"}, "show_progress_bar must be True or False, got 'no'"),
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
        (["ab"], np.zeros(32, np.float32), r"matrix.*got the shape \(32,\)"),
        (["ab"], np.zeros((2, 32), np.int8), "floating-point.*int8"),
        (["ab"], np.full((2, 32), None), r"\[0\] must be a list of numbers"),
        (["ab"], np.array([[0.0] * 32, [math.nan] * 32]), "NaN.*row 1"),
        (["ab"], torch.tensor([[math.inf] * 32, [0.0] * 32]), "infinite.*row 0"),
        (["ab"], [[0.0] * 32, [0.0] * 31], r"\[1\] has 31 values, and document_embeddings\[0\] has 32"),
        (["ab"], [[0.0] * 32, None], r"\[1\] must be a list of vectors, got NoneType"),
        (["ab"], [["0"] * 32] * 2, r"\[0\] must be a list of numbers"),
        (["ab"], [np.zeros(32, np.int8)] * 2, "floating-point.*int8"),
        (["ab"], np.zeros((2, 32), complex), "floating-point.*complex128"),
        (["ab"], torch.zeros(2, 32, dtype=torch.bool), "floating-point.*bool"),
        (["ab"], np.ma.masked_array(np.zeros((2, 32)), mask=True), "masked array"),
        (["ab"], [np.ma.masked_array(np.zeros(32), mask=True)] * 2, r"\[0\].*masked array"),
        (["ab"], scipy.sparse.eye(2, 32), "sparse matrix.*toarray"),
        (["ab"], torch.zeros(2, 32).to_sparse(), "dense tensor.*sparse"),
        (["ab"], torch.zeros(2, 32, device="meta"), "dense tensor.*meta"),
        (["ab"], torch.nested.nested_tensor([torch.zeros(32), torch.zeros(31)]), "dense tensor.*nested"),
        (["ab"], [[True] * 32, [False] * 32], "list of numbers, got bool"),
        (["ab"], np.full((2, 32), 0.5, np.longdouble), "floating-point.*float128"),
        (["ab"], np.array(1.0), r"matrix.*got the shape \(\)"),
        (["ab"], {0: [0.0] * 32}, "list of vectors, got dict"),
        (["ab"], pyarrow.table({"vector": [[0.0] * 32] * 2, "id": [1, 2]}), "list of numbers"),
        (["ab"], "vectors", "list of vectors, got str"),
        (["a", "bc"], [ONE], "one matrix for each query: got 1 for 2"),
        (["a", "bc"], ONE, "one matrix for each query: got 1 for 2"),
        (["a", "bc"], [ONE, ONE], r"\[1\].*\(2, 32\)"),
        (["a", "bc"], 3.0, "list of vectors, got float"),
    ],
)
def test_stored_vectors_that_do_not_fit(tiny: E2Rank, lists, embeddings, message):
    """Guards against a ranking from the wrong vectors: shape, type, values, and a matrix for each query."""
    query, documents = ("q", list(lists[0])) if len(lists) == 1 else (["q", "r"], list(map(list, lists)))
    with pytest.raises(ValueError, match=f"document_embeddings.*{message}"):
        tiny.rerank(query, documents, document_embeddings=embeddings)


@pytest.mark.parametrize(
    ("query", "embeddings", "message"),
    [
        ("q", np.zeros(31, np.float32), r"shape \(1, 32\), a vector for each query, got \(1, 31\)"),
        ("q", np.zeros((2, 32), np.float32), r"shape \(1, 32\).*got \(2, 32\)"),
        ("q", np.zeros((0, 32), np.float32), r"shape \(1, 32\).*got \(0, 32\)"),
        ("q", [], "must"),
        ("q", np.zeros((1, 1, 32), np.float32), r"got the shape \(1, 1, 32\)"),
        ("q", np.array(1.0), r"got the shape \(\)"),
        ("q", [math.nan] * 32, "NaN.*row 0"),
        ("q", np.full((1, 32), math.inf), "infinite.*row 0"),
        ("q", np.zeros(32, int), "floating-point.*int64"),
        ("q", np.zeros(32, complex), "floating-point.*complex128"),
        ("q", [True] * 32, "list of numbers, got bool"),
        ("q", ["0"] * 32, "list of"),
        ("q", [None] * 32, "list of"),
        ("q", np.ma.masked_array(np.zeros(32), mask=True), "masked array"),
        ("q", scipy.sparse.eye(1, 32), "sparse matrix.*toarray"),
        ("q", torch.zeros(32, device="meta"), "dense tensor.*meta"),
        ("q", "vector", "list of vectors, got str"),
        ("q", {0: [0.0] * 32}, "list of vectors, got dict"),
        ("q", 3.0, "list of vectors, got float"),
        (["q", "r"], np.zeros((1, 32), np.float32), r"shape \(2, 32\).*got \(1, 32\)"),
        (["q", "r"], np.zeros((3, 32), np.float32), r"shape \(2, 32\).*got \(3, 32\)"),
        (["q", "r"], np.zeros((2, 16), np.float32), r"shape \(2, 32\).*got \(2, 16\)"),
        (["q", "r"], np.zeros(32, np.float32), r"got the shape \(32,\)"),
        (["q", "r"], [[0.0] * 32, [0.0] * 31], r"\[1\] has 31 values, and query_embeddings\[0\] has 32"),
        (["q", "r"], [[0.0] * 32, None], r"\[1\] must be a list of vectors, got NoneType"),
        (["q", "r"], np.array([[0.0] * 32, [math.nan] * 32]), "NaN.*row 1"),
        (["q"], np.zeros(32, np.float32), r"got the shape \(32,\)"),
        ([], np.zeros((1, 32), np.float32), r"shape \(0, 32\).*got \(1, 32\)"),
    ],
)
def test_query_vectors_that_do_not_fit(tiny: E2Rank, query, embeddings, message):
    """Guards against a ranking by the vector of another query, or of another model; and the name of the argument."""
    with pytest.raises(ValueError, match=f"query_embeddings.*{message}"):
        tiny.rerank(query, ["a", "b"], query_embeddings=embeddings)


@pytest.mark.parametrize("embeddings", [np.zeros(32, np.float32), np.ma.masked_array(np.zeros((2, 32)), mask=True)])
def test_messages_on_query_vectors_do_not_speak_of_documents(tiny: E2Rank, embeddings):
    """Guards against advice that sends the caller to the wrong argument."""
    with pytest.raises(ValueError, match="query_embeddings") as caught:
        tiny.rerank(["q", "r"], ["a", "b"], query_embeddings=embeddings)
    assert "document" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, torch.bfloat16, torch.float32, "lists", "arrays", "tensors"])
def test_query_vectors_in_any_form(tiny: E2Rank, facts, dtype):
    """Guards against a vector that has to be converted first, and one query's that must be a matrix, or must not."""
    queries, options = [QUERY, "iron"], {"query_weight": 0.5, "candidate_order": "given"}
    vectors = tiny.encode_query(queries)
    forms = {"lists": vectors.tolist(), "arrays": list(vectors), "tensors": list(torch.from_numpy(vectors))}
    if isinstance(dtype, str):
        given = forms[dtype]
    else:
        given = torch.from_numpy(vectors).to(dtype) if isinstance(dtype, torch.dtype) else vectors.astype(dtype)
    expected = tiny.rerank(queries, facts, **options)
    together = tiny.rerank(queries, facts, query_embeddings=given, **options)
    for row in range(2):
        assert_same(together[row], expected[row], 0.01)
        for one in (given[row], given[row : row + 1]):  # (D,) and (1, D)
            assert_same(tiny.rerank(queries[row], facts, query_embeddings=one, **options), together[row])
    assert tiny.rerank([], facts, query_embeddings=given[:0]) == []
    assert tiny.rerank(QUERY, [], query_embeddings=given[0]) == []


def test_query_vectors_of_the_caller_stay(tiny: E2Rank, facts):
    """Guards against normalising in place, and gradients that hold memory."""
    vectors = tiny.encode_query([QUERY]) * 3
    before = vectors.copy()
    vectors.flags.writeable = False
    tiny.rerank([QUERY], facts, query_embeddings=vectors, query_weight=0.5)
    assert (vectors == before).all()
    tracked = torch.from_numpy(before).requires_grad_()
    assert_same(
        tiny.rerank(QUERY, facts, query_embeddings=tracked),
        tiny.rerank(QUERY, facts, query_embeddings=before),
        1e-6,
    )


def forms(vectors: np.ndarray) -> dict[str, object]:
    """Vectors as databases, tables and notebooks hand them out."""
    rows = list(vectors)
    objects = np.empty(len(rows), object)
    objects[:] = rows
    lists = vectors.tolist()
    return {
        "lists": lists,
        "tuples": tuple(map(tuple, lists)),
        "arrays": rows,
        "tensors": list(torch.from_numpy(vectors)),
        "generator": (row for row in lists),
        "objects": objects,
        "matrix of objects": vectors.astype(object),
        "big endian": vectors.astype(">f4"),
        "memory": memoryview(vectors),
        "read only": np.broadcast_to(vectors, vectors.shape),
        "from the last": vectors[::-1].copy()[::-1],
        "every second value": np.repeat(vectors, 2, 1)[:, ::2],
        "gradient": torch.from_numpy(vectors).requires_grad_(),
        "frame": pandas.DataFrame(vectors),
        "frame of one column": pandas.DataFrame({"vector": lists}),
        "series": pandas.Series(lists, index=range(7, 7 + len(rows))),
        "series of arrays": pandas.Series(rows),
        "polars": polars.Series(lists),
        "arrow": pyarrow.array(lists, pyarrow.list_(pyarrow.float32())),
        "arrow of fixed size": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1]),
        "arrow in chunks": pyarrow.chunked_array([lists[:3], lists[3:]], pyarrow.list_(pyarrow.float32())),
        "arrow in pandas": pandas.Series(lists, dtype=pandas.ArrowDtype(pyarrow.list_(pyarrow.float32()))),
    }


@pytest.mark.parametrize("form", forms(np.ones((4, 2), np.float32)))
def test_stored_vectors_in_any_form(tiny: E2Rank, facts, form):
    """Guards against vectors from a database that have to be converted first, and against wrong rows of them."""
    vectors = tiny.encode_document(facts)
    expected = tiny.rerank(QUERY, facts, document_embeddings=vectors)
    assert tiny.rerank(QUERY, facts, document_embeddings=forms(vectors)[form]) == expected
    shared = tiny.rerank([QUERY, "iron"], facts, document_embeddings=forms(vectors)[form])
    assert_same(shared[0], expected, 1e-6)
    each = tiny.rerank(
        [QUERY, "iron"], [facts, facts[:4]], document_embeddings=[forms(vectors)[form], forms(vectors[:4])[form]]
    )
    assert_same(each[0], expected, 1e-6)


def test_one_vector_of_a_larger_array(tiny: E2Rank, facts):
    """Guards against an error for a row that NumPy cuts out of other data: its strides mean nothing."""
    vectors = tiny.encode_document(facts[:2])
    expected = tiny.rerank(QUERY, facts[:1], document_embeddings=vectors[:1])
    record = np.zeros(2, [("id", "i1"), ("vector", "f4", (vectors.shape[1],))])
    record["vector"] = vectors
    for row in (vectors[::-1].copy()[::-1][:1], record["vector"][:1]):
        assert tiny.rerank(QUERY, facts[:1], document_embeddings=row) == expected
    assert tiny.rerank(QUERY, [], document_embeddings=vectors[::-1][:0]) == []


@pytest.mark.parametrize("size", [1e-300, 1e-38, 1e-25, 1e-13, 1.0, 1e13, 1e25, 1e38, 1e300])
def test_vectors_of_any_length(tiny: E2Rank, facts, size):
    """Guards against cosines of 0 or NaN for very short and very long vectors, whose squares leave float32's range."""
    vectors = tiny.encode_document(facts).astype(np.float64)
    expected = tiny.rerank(QUERY, facts, document_embeddings=vectors)
    scaled = vectors * np.where(np.arange(len(facts)) % 2, size, 1.0)[:, None]
    assert_same(tiny.rerank(QUERY, facts, document_embeddings=scaled), expected, 1e-6)
    with np.errstate(over="ignore"):
        narrow = scaled.astype(np.float32)
    if np.isfinite(narrow).all() and narrow.any(axis=1).all():
        assert_same(tiny.rerank(QUERY, facts, document_embeddings=narrow), expected, 1e-5 if size > 1e-30 else 1e-3)


@pytest.mark.parametrize(
    "documents",
    [
        np.array, tuple, iter, pandas.Series, polars.Series, pyarrow.array,
        lambda texts: (text for text in texts),
        lambda texts: pandas.Series(texts, dtype="string[pyarrow]", index=range(5, 5 + len(texts))),
        lambda texts: pyarrow.chunked_array([texts[:2], texts[2:]]),
        lambda texts: np.array(texts, dtype=object),
    ],
)  # fmt: skip
def test_documents_in_any_form(tiny: E2Rank, facts, documents):
    """Guards against a column of texts that has to be converted first."""
    assert tiny.rerank(QUERY, documents(facts)) == tiny.rerank(QUERY, facts)
    assert tiny.rerank(documents([QUERY]), [documents(facts)]) == [tiny.rerank(QUERY, facts)]


def test_numbers_of_numpy_and_torch(tiny: E2Rank, facts):
    """Guards against a number that is refused because of the library that it comes from."""
    expected = tiny.rerank(QUERY, facts, top_k=2, query_weight=0.5, num_prompt_documents=3)
    for whole in (np.int64, np.uint8, np.array, torch.tensor):
        assert tiny.rerank(QUERY, facts, top_k=whole(2), query_weight=0.5, num_prompt_documents=whole(3)) == expected
    for share in (np.float16, np.float32, np.float64):
        assert tiny.rerank(QUERY, facts, top_k=2, query_weight=share(0.5), num_prompt_documents=3) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instruction": 3}, "instruction must be a string, got int"),
        ({"prompt_format": None}, "prompt_format must be one of.*got None"),
        ({"prompt_format": {"name": "x"}}, "prompt_format .* is not one: .*template"),
        ({"prompt_format": {"name": "x", "template": 3}}, "prompt_format .* is not one"),
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
