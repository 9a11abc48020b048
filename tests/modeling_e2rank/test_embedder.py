"""What goes through the model for a ranking: which texts, how often, in which batches, cut where."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2rank_st import E2Rank
from e2rank_st.embedding_e2rank import BLOCK, MAX_BATCH_TOKENS, START_TOKENS, cosine, token_batches
from e2rank_st.prompts_e2rank import TextTokenizer
from tests.modeling_e2rank.rankings import QUERY, assert_same, scores


def test_embeddings_equal_encode(tiny: E2Rank, bundled: E2Rank, facts):
    """Guards against a second way of embedding: stored vectors of encode_document give what rerank itself embeds."""
    texts = [*facts, "", "   ", "long " * 3000, "[SEP] <|im_end|> <think>", "ärger 🎉"]
    for model in (tiny, bundled):
        vectors = model.encode_document(texts)
        assert_same(model.rerank(QUERY, texts), model.rerank(QUERY, texts, document_embeddings=vectors), 1e-6)


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


def test_stored_vectors_cost_one_forward_pass(tiny: E2Rank, facts, spy):
    """Guards against embedding stored documents: one pass, and only the prompt's documents are tokenised, and once."""
    vectors = tiny.encode_document(facts)
    _ = tiny.listwise.builder  # it tokenises a prompt of its own, once
    spy.shapes.clear()
    spy.texts.clear()
    tiny.rerank(QUERY, facts, document_embeddings=vectors, candidate_order="given", num_prompt_documents=3)
    assert len(spy.shapes) == 1
    assert spy.shapes[0][0] == 1
    assert [sum(fact in text for text in spy.texts) for fact in facts] == [1] * 3 + [0] * (len(facts) - 3)


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
    lengths = [5, MAX_BATCH_TOKENS + 1, 1, MAX_BATCH_TOKENS // 2, 5, 5]
    batches = token_batches(lengths, batch_size=3)
    assert batches[:2] == [[1], [3]], "the longest come first, and one above the limit goes alone"
    assert token_batches([], 3) == []


def cost(parts, lengths) -> int:
    return sum(max(lengths[row] for row in part) * len(part) + START_TOKENS["cpu"] for part in parts)


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(1, 400), max_size=8), batch_size=st.integers(1, 4))
def test_no_other_batches_cost_less(lengths, batch_size):
    """Guards against padding: of all ways to split the sorted sequences, the one that costs least is taken."""
    found = token_batches(lengths, batch_size)
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths))), "none is lost or repeated"
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    splits = []
    for ends in itertools.product((False, True), repeat=max(len(lengths) - 1, 0)):
        bounds = [0, *(row + 1 for row, end in enumerate(ends) if end), len(lengths)]
        parts = [order[first:last] for first, last in itertools.pairwise(bounds)]
        splits += [parts] * all(1 <= len(part) <= batch_size for part in parts)
    assert not lengths or cost(found, lengths) == min(cost(parts, lengths) for parts in splits)


def test_batches_of_a_gpu_are_larger():
    """Guards against many small forward passes where each costs more than some padding."""
    lengths = list(range(20, 120))
    assert len(token_batches(lengths, 32, "cuda")) == 4 < len(token_batches(lengths, 32))
    limited = token_batches([MAX_BATCH_TOKENS // 2] * 5, 32, "cuda")
    assert sorted(len(batch) for batch in limited) == [1, 2, 2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_side(tiny: E2Rank, side):
    """Guards against embedding the other end of a long text than ``encode`` does."""
    model = copy.deepcopy(tiny)
    model.tokenizer.truncation_side = side
    model.max_seq_length = 12
    texts = [f"{start} {'filler words ' * 20} {start} end" for start in ("one", "two", "three")]
    stored = model.rerank(QUERY, texts, document_embeddings=model.encode_document(texts))
    assert_same(model.rerank(QUERY, texts), stored, 1e-6)


@pytest.mark.parametrize(
    "filler", [" ", "a", "word ", "größe🎉", "跳蚤可以活一百天", "supercalifragilistic" * 20 + " ", "\n\n\t "]
)
def test_the_start_of_a_long_text_has_the_tokens_of_the_whole(tiny: E2Rank, bundled: E2Rank, filler):
    """Guards against a bound in characters that is too short, or that changes tokens before it."""
    for model in (tiny, bundled):
        texts = TextTokenizer(model.tokenizer)
        for before in ("", "An adult flea lives for months. " * 3):
            text = before + filler * (30_000 // len(filler)) + " the end"
            for count in (1, 30, 256):
                part = texts.start(text, count)
                assert text.startswith(part)
                assert texts.ids([part])[0][:count] == texts.ids([text])[0][:count]


@pytest.mark.parametrize(
    "text",
    [
        "a " * 164 + "zqxj" * 23 + "\u00ad" * 60_000 + "zqxj" * 5 + " iron melts" * 200,
        "a " * 229 + "zqxj" * 23 + "\u0301" * 60_000 + "zqxj" * 5 + " iron melts" * 200,
        "a" + "\u0300" * 30_000 + "\u0323" + " x" * 100,
        "\u1100" + "\u1161" * 30_000 + ". end",
        ("x" * 1500 + " ") * 40,
        "it's 3.14, l'\u00e9te\u0301 we'll. " * 2000,
    ],
)
def test_normalisation_does_not_reach_behind_the_start(tiny: E2Rank, bundled: E2Rank, text):
    """Guards against a cut inside of a word: characters far behind may vanish, move, or make the word unknown."""
    for model in (tiny, bundled):
        texts = TextTokenizer(model.tokenizer)
        for count in (1, 40, 200, 256, 321):
            assert texts.ids([texts.start(text, count)])[0][:count] == texts.ids([text])[0][:count]


def test_work_does_not_follow_the_length_of_a_text(tiny: E2Rank, bundled: E2Rank, spy):
    """Guards against gigabytes for the tokens of a text that is cut anyway: its rest is not tokenised at all."""
    text = "An adult flea lives from two to three months. " * 100_000
    for model in (tiny, bundled):
        model = copy.deepcopy(model)
        model.max_seq_length = 64
        model.replace_listwise(max_prompt_tokens=128, max_query_tokens=32)
        for order in ("given", "similarity"):
            spy.texts.clear()
            cold = model.rerank(text, [text, "Iron."], candidate_order=order)
            assert 0 < max(map(len, spy.texts)) < 10_000
        short = model.rerank(text[:20_000], [text[:20_000], "Iron."], candidate_order="similarity")
        assert cold == short


def test_encode_does_not_follow_the_length_of_a_text(tiny: E2Rank, bundled: E2Rank, monkeypatch):
    """Guards against the same in ``encode``: the tokenizer gets the start of a text, and the vector is the same."""
    text, given = "An adult flea lives from two to three months. " * 100_000, []
    for model in (tiny, bundled):
        original = model[0].preprocess
        monkeypatch.setattr(
            model[0],
            "preprocess",
            lambda texts, *args, original=original, **options: given.extend(texts) or original(texts, *args, **options),
        )
        for limits in ({}, {"processing_kwargs": {"text": {"max_length": 2000}}} if model is tiny else {}):
            vectors = model.encode_document([text, "Iron."], **limits)
            assert (vectors == model.encode_document([text[:50_000], "Iron."], **limits)).all()
    assert max(map(len, given)) < 50_000


def test_encode_without_truncation_keeps_the_whole_text(tiny: E2Rank):
    """Guards against a long text that is cut although the call asks for all of it."""
    model, text = copy.deepcopy(tiny), "word " * 2000
    model.max_seq_length = 8
    features = model.preprocess([text], processing_kwargs={"text": {"truncation": False}})
    assert features["input_ids"].shape[1] == len(model.listwise.texts.ids([text])[0]) + 1  # and the EOS


def test_what_is_cut_for_embedding_is_logged(tiny: E2Rank, caplog):
    """Guards against silent truncation: a document longer than the model embeds is reported."""
    with caplog.at_level("INFO", "e2rank_st"):
        tiny.rerank(QUERY, ["word " * 3000], show_progress_bar=False)
    assert "at most 1024 tokens of a document: cut 1 of 1" in caplog.text


def test_a_row_does_not_depend_on_the_others():
    """Guards against matrix products, whose blocks round a row by its place: equal rows tie exactly."""
    torch.manual_seed(0)
    row, query = torch.randn(384), torch.randn(384)
    for count in (1, 7, 64, 1001, 2 * BLOCK + 3):
        assert cosine(row.expand(count, -1).clone(), query).unique().tolist() == [cosine(row[None], query).item()]
    rows = torch.randn(2 * BLOCK + 3, 8)
    alone = [cosine(row[None], query[:8]).item() for row in rows]
    assert cosine(rows, query[:8]).tolist() == alone
