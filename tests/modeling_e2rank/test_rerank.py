"""rerank: its results, its cost, its independence of batch and call, and its answers to odd input."""

import copy
import math

import numpy as np
import pytest
import torch
from sentence_transformers.util import cos_sim
from transformers import RobertaConfig, RobertaModel

from e2rank_st import E2Rank
from e2rank_st.modeling_e2rank import (
    MAX_BATCH_TOKENS,
    ListwiseRerank,
    TextTokenizer,
    cosine,
    num_positions,
    token_batches,
)

QUERY = "how long do fleas live"


def scores(ranking: list[dict]) -> dict[int, float]:
    return {hit["corpus_id"]: hit["score"] for hit in ranking}


def assert_same(one: list[dict], other: list[dict], tolerance: float = 1e-5) -> None:
    """Same scores for the same documents, within rounding."""
    one, other = scores(one), scores(other)
    assert one.keys() == other.keys()
    assert max(abs(one[index] - other[index]) for index in one) <= tolerance


class Spy:
    """Records what goes through a model: shapes of forward passes, and every text given to the tokenizer."""

    def __init__(self, model: E2Rank, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.texts: list[str] = []
        self.handle = model[0].register_forward_pre_hook(
            lambda _, args: self.shapes.append(tuple(args[0]["input_ids"].shape))
        )
        encode = type(model.tokenizer)._encode_plus

        def counting(tokenizer, text, *args, **kwargs):
            self.texts += [text] if isinstance(text, str) else list(text)
            return encode(tokenizer, text, *args, **kwargs)

        monkeypatch.setattr(type(model.tokenizer), "_encode_plus", counting)


@pytest.fixture
def spy(tiny: E2Rank, monkeypatch):
    spy = Spy(tiny, monkeypatch)
    yield spy
    spy.handle.remove()


@pytest.mark.parametrize("order", ["given", "similarity"])
def test_scores_are_the_cosines_of_the_method(tiny: E2Rank, facts, order):
    """Guards against another method: cosine of the embedded prompt, made by hand here, to the embedded documents."""
    vectors = tiny.encode_document(facts, convert_to_tensor=True)
    chosen = list(range(4))
    if order == "similarity":
        chosen = cos_sim(tiny.encode_query(QUERY), vectors)[0].argsort(descending=True, stable=True)[:4].tolist()
    documents = "\n".join(f"[{place}] {facts[index]}" for place, index in enumerate(chosen, start=1))
    text = (
        f"<|im_start|>user\n{tiny.listwise.instruction}:\nDocuments:\n{documents}\nSearch Query: {QUERY}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    ids = tiny.tokenizer(text, add_special_tokens=False, split_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        hidden = tiny.transformers_model(**ids).last_hidden_state
    expected = cos_sim(hidden[:, -1], vectors)[0]
    got = tiny.rerank(QUERY, facts, num_prompt_documents=4, candidate_order=order)
    assert [hit["corpus_id"] for hit in got] == expected.argsort(descending=True).tolist()
    assert all(math.isclose(hit["score"], expected[hit["corpus_id"]], abs_tol=1e-5) for hit in got)


def test_the_real_model_finds_the_answers(bundled: E2Rank, facts):
    """Guards against wiring that runs and ranks nonsense: the four sentences on fleas come first."""
    top = bundled.rerank(QUERY, facts, top_k=3, return_documents=True)
    assert {hit["corpus_id"] for hit in top} == {0, 4, 7}
    assert all(hit["text"] == facts[hit["corpus_id"]] for hit in top)
    assert [hit["score"] for hit in top] == sorted((hit["score"] for hit in top), reverse=True)
    assert all(type(hit["corpus_id"]) is int and type(hit["score"]) is float for hit in top), "ready for JSON"


def test_embeddings_equal_encode(tiny: E2Rank, bundled: E2Rank, facts):
    """Guards against a second way of embedding: stored vectors of encode_document give what rerank itself embeds."""
    texts = [*facts, "", "   ", "long " * 3000, "[SEP] <|im_end|> <think>", "ärger 🎉"]
    for model in (tiny, bundled):
        vectors = model.encode_document(texts)
        assert_same(model.rerank(QUERY, texts), model.rerank(QUERY, texts, document_embeddings=vectors), 1e-6)


@pytest.mark.parametrize("order", ["given", "similarity"])
def test_a_query_weight_mixes_two_directions(tiny: E2Rank, facts, order):
    """Guards against a mix of other vectors or of other lengths, and against a configured weight that does nothing."""
    query, documents = (torch.from_numpy(part) for part in (tiny.encode_query(QUERY), tiny.encode_document(facts)))

    def cosines(model: E2Rank, **options) -> torch.Tensor:
        found = scores(model.rerank(QUERY, facts, num_prompt_documents=3, candidate_order=order, **options))
        return torch.tensor([found[index] for index in range(len(facts))])

    plain, listwise, mixed = (
        torch.cosine_similarity(documents, query[None]),
        cosines(tiny),
        cosines(tiny, query_weight=0.3),
    )
    torch.testing.assert_close(cosines(tiny, query_weight=1), plain, atol=1e-5, rtol=0)
    # A cosine to the mix is the mix of the cosines over its length, the same for all documents, and below 1.
    lengths = (0.7 * listwise + 0.3 * plain) / mixed
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths), atol=0, rtol=1e-4)
    assert 0.4 < lengths[0] < 1
    configured = copy.deepcopy(tiny)
    configured.listwise.query_weight = 0.3
    assert torch.equal(cosines(configured), mixed)
    torch.testing.assert_close(cosines(configured, document_embeddings=documents), mixed, atol=1e-6, rtol=0)


def test_a_document_prompt_is_part_of_the_embedding_only(tiny: E2Rank, facts):
    """Guards against a prompt such as "passage: " that is embedded, but does not enter the listwise prompt."""
    model = copy.deepcopy(tiny)
    model.prompts["document"] = "passage: "
    stored = model.rerank(QUERY, facts, document_embeddings=model.encode_document(facts))
    assert_same(model.rerank(QUERY, facts), stored)
    assert scores(stored) != scores(tiny.rerank(QUERY, facts)), "the premise: the prompt changes the vectors"


@pytest.mark.parametrize("prompt", ["", "passage: ", "passage:\n"])
def test_tokens_behind_a_prompt(tiny: E2Rank, facts, prompt):
    """Guards against cutting a text at the places of the prompt before it: the starts are the text's own."""
    tokens = TextTokenizer(tiny.tokenizer).texts(facts, prompt)
    for text in facts:
        assert tokens[text].starts[0] == 0
        assert all(text.startswith(tokens[text].head(count)) for count in range(20))
        assert tokens[text].head(3) == " ".join(text.split()[:3])[: tokens[text].starts[3]].rstrip()
        whole = tiny.tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
        assert tokens[text].ids.tolist() == whole


@pytest.mark.parametrize("name", ["tiny", "bundled"])
def test_batches_do_not_matter(request, name, facts):
    """Guards against scores that depend on padding: any batch size, alone or among other queries, up to 1e-5."""
    model = request.getfixturevalue(name)
    queries = [QUERY, "capital", "what is gravity, and what does it do to the planets of the solar system?"]
    together = model.rerank(queries, facts, batch_size=64)
    for batch_size in (1, 2, 7):
        for one, other in zip(model.rerank(queries, facts, batch_size=batch_size), together, strict=True):
            assert_same(one, other)
    for query, ranking in zip(queries, together, strict=True):
        assert_same(model.rerank(query, facts), ranking)
    assert_same(model.rerank([QUERY, "x"], [facts, ["y " * 400]])[0], together[0])


def test_shared_list_equals_a_list_for_each(tiny: E2Rank, facts):
    """Guards against mixing up whose candidates they are."""
    queries = [QUERY, "capital"]
    shared = tiny.rerank(queries, facts)
    assert shared == tiny.rerank(queries, [facts, list(facts)])
    vectors = tiny.encode_document(facts)
    for embeddings in (vectors, [vectors, vectors], np.stack([vectors, vectors])):
        for one, other in zip(tiny.rerank(queries, facts, document_embeddings=embeddings), shared, strict=True):
            assert_same(one, other)


def test_candidates_beyond_the_prompt_are_scored(tiny: E2Rank, facts):
    """Guards against losing the tail: all documents have a score, and those outside the prompt do not change it."""
    short = tiny.rerank(QUERY, facts[:5], num_prompt_documents=2)
    long = tiny.rerank(QUERY, facts, num_prompt_documents=2)
    assert len(long) == len(facts)
    assert all(math.isclose(scores(long)[index], scores(short)[index], abs_tol=1e-6) for index in range(5))
    assert scores(long) != scores(tiny.rerank(QUERY, facts, num_prompt_documents=3)), "but those inside do"


def test_ties_keep_the_given_order(tiny: E2Rank, facts):
    """Guards against an unstable sort: equal documents have equal scores and stay in order, each with its own id."""
    documents = [facts[1], facts[0]] * 40
    for ranking in (
        tiny.rerank(QUERY, documents),
        tiny.rerank(QUERY, documents, document_embeddings=np.tile(tiny.encode_document(documents[:2]), (40, 1))),
    ):
        ids = [hit["corpus_id"] for hit in ranking]
        assert sorted(ids) == list(range(80))
        assert ids[:40] == sorted(ids[:40])
        assert ids[40:] == sorted(ids[40:])
        assert len({hit["score"] for hit in ranking}) == 2


def test_stored_vectors_cost_one_forward_pass(tiny: E2Rank, facts, spy):
    """Guards against embedding what is stored: one query, one pass; and only the prompt's documents are tokenised."""
    vectors = tiny.encode_document(facts)
    spy.shapes.clear()
    spy.texts.clear()
    tiny.rerank(QUERY, facts, document_embeddings=vectors, candidate_order="given", num_prompt_documents=3)
    assert len(spy.shapes) == 1
    assert spy.shapes[0][0] == 1
    assert [text for text in spy.texts if text in facts] == facts[:3]


def test_each_distinct_text_once(tiny: E2Rank, facts, spy):
    """Guards against paying twice: repeated documents and queries are tokenised and embedded once a call."""
    tiny.rerank([QUERY, QUERY, "x"], [facts, facts[::-1], facts[:5] * 2], candidate_order="similarity")
    distinct_prompts = 3  # the third query's candidates are other ones, and the second's come in another order
    assert sum(rows for rows, _ in spy.shapes) <= len(facts) + 2 + distinct_prompts
    assert sorted(text for text in spy.texts if text in facts) == sorted(facts)


def test_passes_are_bounded_in_tokens(tiny: E2Rank, spy):
    """Guards against one long text that pads a whole batch: like lengths go together, prompts apart from documents."""
    documents = [f"word{number} " * (300 if number % 10 == 0 else 2) for number in range(60)]
    tiny.rerank(QUERY, documents, num_prompt_documents=5)
    assert all(rows * width <= MAX_BATCH_TOKENS and rows <= 32 for rows, width in spy.shapes)
    *document_shapes, prompt_shape = spy.shapes
    assert prompt_shape[0] == 1
    assert min(width for _, width in document_shapes) < 40, "short documents are not padded to the long ones"


def test_token_batches():
    """Guards against losing or repeating a text, and against batches above their bounds."""
    lengths = [5, MAX_BATCH_TOKENS + 1, 1, MAX_BATCH_TOKENS // 2, 5, 5]
    batches = list(token_batches(lengths, batch_size=2))
    assert batches == [[1], [3, 0], [4, 5], [2]]
    assert list(token_batches([], 3)) == []


def test_many_candidates_and_a_huge_document(tiny: E2Rank):
    """Guards against work that grows out of hand: 10,000 candidates, one of them a megabyte."""
    documents = [f"text {number % 500}" for number in range(9_999)] + ["lorem ipsum " * 90_000]
    assert len(documents[-1]) > 2**20
    ranking = tiny.rerank(QUERY, documents, top_k=7, candidate_order="similarity")
    assert len(ranking) == 7


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


def test_one_document(tiny: E2Rank):
    """Guards against a scalar where a list belongs."""
    (hit,) = tiny.rerank(QUERY, ["one"])
    assert hit["corpus_id"] == 0
    assert -1 <= hit["score"] <= 1


@pytest.mark.parametrize("query", ["", "  \n ", "?"])
def test_blank_texts_have_finite_scores(tiny: E2Rank, bundled: E2Rank, query):
    """Guards against NaN from a text without tokens."""
    for model in (tiny, bundled):
        ranking = model.rerank(query, ["", " ", "\n\n", "text", "\u200b"])
        assert all(math.isfinite(hit["score"]) for hit in ranking)


def test_top_k(tiny: E2Rank, facts):
    """Guards against off-by-one and against an error for a list that is shorter than asked for."""
    whole = tiny.rerank(QUERY, facts)
    assert tiny.rerank(QUERY, facts, top_k=0) == []
    assert tiny.rerank(QUERY, facts, top_k=3) == whole[:3]
    assert tiny.rerank(QUERY, facts, top_k=99) == whole
    assert tiny.rank(QUERY, facts, top_k=3) == whole[:3], "rank is another name of rerank"


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


def test_truncated_dimensions(tiny: E2Rank, facts):
    """Guards against comparing vectors of different lengths where the model truncates its embeddings."""
    with tiny.truncate_embeddings(16):
        vectors = tiny.encode_document(facts)
        assert vectors.shape == (10, 16)
        assert_same(tiny.rerank(QUERY, facts), tiny.rerank(QUERY, facts, document_embeddings=vectors))


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
    ("query", "documents", "message"),
    [
        (["q", 3], ["a"], r"query\[1\].*int: 3"),
        (b"q", ["a"], "query must be a list of strings, got bytes"),
        (None, ["a"], "query must be a list of strings, got NoneType"),
        (["q", "r"], [["a"]], "one list for each query: got 1 for 2"),
        (["q", "r"], [["a"], ["b", 4]], r"documents\[1\]\[1\].*int: 4"),
        (["q", "r"], [["a"], "b"], r"documents\[1\] must be a list of strings, got str"),
        (["q", "r"], ["a", ["b"]], r"documents\[1\].*list"),
        (["q", "r"], 5, "documents must be a list of strings or of lists, got int"),
    ],
)
def test_queries_and_lists_that_do_not_fit(tiny: E2Rank, query, documents, message):
    """Guards against ranking the wrong list for a query."""
    with pytest.raises(ValueError, match=message):
        tiny.rerank(query, documents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k must be an integer of at least 0, got -1"),
        ({"top_k": 1.5}, "top_k.*got 1.5"),
        ({"top_k": True}, "top_k.*got True"),
        ({"num_prompt_documents": -2}, "num_prompt_documents.*got -2"),
        ({"query_weight": 1.5}, r"query_weight must be a number from 0 to 1, got 1\.5"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"candidate_order": "random"}, "candidate_order must be one of.*'given'.*got 'random'"),
    ],
)
def test_options_that_are_not_allowed(tiny: E2Rank, options, message):
    """Guards against a typo that changes results silently."""
    with pytest.raises(ValueError, match=message):
        tiny.rerank(QUERY, ["a"], **options)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((3, 32), np.float32), r"shape \(2, 32\).*got \(3, 32\)"),
        (np.zeros((2, 16), np.float32), r"shape \(2, 32\).*got \(2, 16\)"),
        (np.zeros(32, np.float32), r"shape \(2, 32\).*got \(32,\)"),
        (np.zeros((2, 32), np.int8), "floating-point.*int8"),
        (np.full((2, 32), None), "floating-point.*object"),
        (np.full((2, 32), 1e300), "infinite.*row 0"),
        (np.array([[0.0] * 32, [math.nan] * 32]), "NaN.*row 1"),
        (torch.tensor([[math.inf] * 32, [0.0] * 32]), "infinite.*row 0"),
        ([[0.0] * 32] * 2, "NumPy or torch.*got list"),
        ("vectors", "NumPy or torch.*got str"),
    ],
)
def test_stored_vectors_that_do_not_fit(tiny: E2Rank, embeddings, message):
    """Guards against a ranking from the wrong vectors: shape, type and values are checked."""
    with pytest.raises(ValueError, match=f"document_embeddings.*{message}"):
        tiny.rerank(QUERY, ["a", "b"], document_embeddings=embeddings)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ([np.zeros((1, 32), np.float32)], "one matrix for each query: got 1 for 2"),
        (np.zeros((1, 32), np.float32), "one matrix for each query: got 1 for 2"),
        ([np.zeros((1, 32), np.float32), np.zeros((1, 32), np.float32)], r"document_embeddings\[1\].*\(2, 32\)"),
        (3.0, "one matrix for each query, got float"),
    ],
)
def test_stored_vectors_of_many_queries(tiny: E2Rank, embeddings, message):
    """Guards against using one query's vectors for another's."""
    with pytest.raises(ValueError, match=message):
        tiny.rerank(["q", "r"], [["a"], ["b", "c"]], document_embeddings=embeddings)


def test_a_row_does_not_depend_on_the_others():
    """Guards against matrix products, whose blocks round a row by its place: equal rows tie exactly."""
    torch.manual_seed(0)
    row, query = torch.randn(384), torch.randn(384)
    for count in (1, 7, 64, 1001):
        assert cosine(row.expand(count, -1).clone(), query).unique().tolist() == [cosine(row[None], query).item()]


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


def test_bfloat16_keeps_the_ranking(bundled: E2Rank, facts):
    """Guards against a fast option that ranks otherwise: cosines to float32 within 0.01, clear gaps in order."""
    half = copy.deepcopy(bundled).bfloat16()
    # In the given order: nearly equal documents may change places in a prompt that is ordered by similarity.
    exact, fast = (scores(model.rerank(QUERY, facts, candidate_order="given")) for model in (bundled, half))
    assert max(abs(exact[index] - fast[index]) for index in exact) < 0.01
    clear = [(a, b) for a in exact for b in exact if exact[a] > exact[b] + 0.02]
    assert len(clear) > 30
    assert all(fast[a] > fast[b] for a, b in clear)


def test_progress_bar(tiny: E2Rank, facts, capsys):
    """Guards against a bar that cannot be switched, and against one on stdout, where results go."""
    tiny.rerank(QUERY, facts, show_progress_bar=False)
    assert capsys.readouterr().err == ""
    tiny.rerank(QUERY, facts, show_progress_bar=True)
    shown = capsys.readouterr()
    assert "document" in shown.err
    assert shown.out == ""


def test_a_model_in_training_reranks_without_dropout(tiny: E2Rank, facts):
    """Guards against random scores in the middle of a training."""
    model = copy.deepcopy(tiny)
    for layer in model.transformers_model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    assert model.rerank(QUERY, facts) == model.train().rerank(QUERY, facts)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_side(tiny: E2Rank, side):
    """Guards against embedding the other end of a long text than ``encode`` does."""
    model = copy.deepcopy(tiny)
    model.tokenizer.truncation_side = side
    model.max_seq_length = 12
    texts = [f"{start} {'filler words ' * 20} {start} end" for start in ("one", "two", "three")]
    stored = model.rerank(QUERY, texts, document_embeddings=model.encode_document(texts))
    assert_same(model.rerank(QUERY, texts), stored, 1e-6)


def test_what_is_cut_for_embedding_is_logged(tiny: E2Rank, caplog):
    """Guards against silent truncation: a document longer than the model embeds is reported."""
    with caplog.at_level("INFO", "e2rank_st"):
        tiny.rerank(QUERY, ["word " * 3000], show_progress_bar=False)
    assert "at most 1024 tokens of a document" in caplog.text


def test_positions_of_roberta():
    """Guards against an index error: RoBERTa counts its positions from behind the padding's."""
    config = RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    backbone = RobertaModel(config)
    backbone(torch.arange(2, 18).repeat(2)[None])  # the premise: 32 tokens are the most

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.config = backbone, config

    assert num_positions(Model()) == 32
