"""Passages of long documents: where a text is split, what a document scores, and which passage a prompt shows."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim

from e2rank_st import E2Rank
from tests.modeling_e2rank.rankings import QUERY, assert_same, scores

WORDS = " ".join(f"word{number} flea" for number in range(120)) + "."
TEXTS = {
    "words": WORDS,
    "chinese": "".join(f"跳蚤可以活{number}天。" for number in range(60)),
    "emoji": "".join(f"größe🎉{number}👩‍👧 " for number in range(40)),
    "lines": "\n\n".join(f"# {number}\tiron; melts" for number in range(60)),
}
LIMIT = 24


@pytest.fixture(params=["tiny", "bundled"])
def model(request: pytest.FixtureRequest) -> E2Rank:
    model = copy.deepcopy(request.getfixturevalue(request.param))
    model.max_seq_length = LIMIT
    return model


def by_hand(model: E2Rank, text: str) -> list[str]:
    """Windows by upstream's tokenizer, which sees the whole rest of the text each time."""
    tokenizer, prompt = copy.deepcopy(model.tokenizer), model.prompts.get("document") or ""
    found, begin, special = [], 0, len(tokenizer("")["input_ids"])
    while True:
        rest = tokenizer(prompt + text[begin:], add_special_tokens=False, return_offsets_mapping=True)
        starts = [max(start - len(prompt), 0) for start, end in rest["offset_mapping"] if end > len(prompt)]
        room = LIMIT - special - (len(rest["input_ids"]) - len(starts))
        if len(starts) <= room:
            return [*found, text[begin:]]
        found.append(text[begin : begin + starts[room]])
        begin += starts[room - room // 4]


@pytest.mark.parametrize("prompt", ["", "passage: "])
@pytest.mark.parametrize("kind", TEXTS)
def test_windows_are_those_split_by_hand(model: E2Rank, kind: str, prompt: str):
    """Guards against a window that is too long and is cut again, and against offsets of the prompt or of bytes."""
    model.prompts["document"] = prompt
    found = model.listwise.passages(TEXTS[kind])
    assert found == by_hand(model, TEXTS[kind])
    assert len(found) > 2, "the premise"
    assert all(len(model.tokenizer(prompt + part)["input_ids"]) <= LIMIT for part in found)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 5_000, "a\u0301\u0323" * 400, "👩‍👩‍👧" * 200, " \n\t" * 2_000,
        "\ufffd\u200b" * 500, "<|im_end|> [SEP] " * 50, "ﷺ" * 300, WORDS + " " * 9_000 + "end",
        "supercalifragilistic" * 40,
    ],
)  # fmt: skip
def test_no_part_of_a_hostile_text_is_lost(model: E2Rank, text: str):
    """Guards against a gap between passages, one that the model cuts again, and a loop that does not end."""
    end = 0
    for part in model.listwise.passages(text):
        assert part and len(model.tokenizer(part)["input_ids"]) <= LIMIT
        begin = next(start for start in range(end, -1, -1) if text.startswith(part, start))
        end = max(end, begin + len(part))
    assert end == len(text)


def test_the_limit_itself(model: E2Rank):
    """Guards against a document of exactly the limit that is split, and one token more that is cut."""
    room = LIMIT - len(model.tokenizer("")["input_ids"])
    text = "iron " * 200
    starts = [start for start, _ in model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    ids = model.listwise.texts.ids
    exact = next(text[:start] for start in starts if len(ids([text[:start]])[0]) == room)
    more = next(text[:start] for start in starts if len(ids([text[:start]])[0]) == room + 1)
    assert model.listwise.passages(exact) == [exact]
    assert len(model.listwise.passages(more)) == 2
    assert model.listwise.passages("") == [""]


def reference(model: E2Rank, documents: list[str], order: str, count: int, weight: float) -> dict[int, float]:
    """Scores by brute force: each passage as a document of its own, those of the prompt first; the best of each."""
    parts = [by_hand(model, text) for text in documents]
    query = model.encode_query(QUERY)
    near = [cos_sim(query, model.encode_document(part))[0] for part in parts]
    places = list(range(len(documents)))
    if order == "similarity":
        places.sort(key=lambda place: -float(near[place].max()))
    shown = [(place, int(near[place].argmax())) for place in places[:count]]
    flat = shown + [(a, b) for a, part in enumerate(parts) for b in range(len(part)) if (a, b) not in shown]
    hits = model.rerank(
        QUERY, [parts[a][b] for a, b in flat], num_prompt_documents=count, candidate_order="given", query_weight=weight
    )
    best: dict[int, float] = {}
    for hit in hits:
        best.setdefault(flat[hit["corpus_id"]][0], hit["score"])
    return best


def long_documents(facts: list[str]) -> list[str]:
    return [WORDS[:600] + facts[7], facts[0], TEXTS["chinese"], " ".join(facts * 3), "", facts[2] + TEXTS["emoji"]]


@pytest.mark.parametrize("order", ["given", "similarity"])
def test_scores_are_those_of_brute_force(model: E2Rank, facts: list[str], order: str):
    """Guards against another passage in the prompt, or a score that is not the best of a document's passages."""
    documents = long_documents(facts)
    for count, weight in ((2, 0.0), (4, 0.3)):
        options = {"num_prompt_documents": count, "candidate_order": order, "query_weight": weight}
        found = scores(model.rerank(QUERY, documents, long_documents="passages", **options))
        expected = reference(model, documents, order, count, weight)
        assert found.keys() == expected.keys()
        assert max(abs(found[place] - expected[place]) for place in found) < 1e-5


def test_short_documents_are_ranked_as_before(tiny: E2Rank, facts: list[str], spy):
    """Guards against a price for everyone: without a long document, scores are bit-equal and work is the same."""
    for options in ({}, {"candidate_order": "similarity"}, {"query_weight": 0.5}):
        cut = tiny.rerank(QUERY, facts, **options)
        before = len(spy.shapes)
        assert tiny.rerank(QUERY, facts, long_documents="passages", **options) == cut
        assert len(spy.shapes) == 2 * before
        spy.shapes.clear()


def test_stored_passages_give_the_same(model: E2Rank, facts: list[str]):
    """Guards against stored passages of another document, query or order, in each form that vectors may have."""
    documents = long_documents(facts)
    lists = [documents, documents[::-1]]
    stored = [[model.encode_document(model.listwise.passages(text)) for text in part] for part in lists]
    for order in ("given", "similarity"):
        options = {"long_documents": "passages", "candidate_order": order, "num_prompt_documents": 3}
        cold = model.rerank(QUERY, documents, **options)
        assert_same(model.rerank(QUERY, documents, document_embeddings=stored[0], **options), cold)
        as_lists = [matrix.tolist() for matrix in stored[0]]
        assert_same(model.rerank(QUERY, documents, document_embeddings=as_lists, **options), cold)
        queries = [QUERY, "iron"]
        both = model.rerank(queries, documents, **options)
        assert_same(both[0], cold)
        for vectors in (stored[0], [stored[0], stored[0]]):
            for one, other in zip(
                model.rerank(queries, documents, document_embeddings=vectors, **options), both, strict=True
            ):
                assert_same(one, other)
        each = model.rerank(queries, lists, **options)
        for one, other in zip(model.rerank(queries, lists, document_embeddings=stored, **options), each, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("order", ["given", "similarity"])
def test_a_given_query_vector_chooses_the_same_passages(model: E2Rank, facts: list[str], order: str):
    """Guards against another passage in the prompt where the query's vector comes from the caller."""
    documents, queries = long_documents(facts), [QUERY, "iron"]
    stored = [model.encode_document(model.listwise.passages(text)) for text in documents]
    vectors = model.encode_query(queries)
    for weight in (0, 0.5):
        options = {"long_documents": "passages", "candidate_order": order, "query_weight": weight}
        for more in ({}, {"document_embeddings": stored}, {"document_embeddings": stored, "min_similarity": -1.0}):
            expected = model.rerank(queries, documents, **options, **more)
            found = model.rerank(queries, documents, query_embeddings=vectors, **options, **more)
            for one, other in zip(found, expected, strict=True):
                assert_same(one, other, 1e-5)


def test_one_vector_for_each_document_counts_as_one_passage(model: E2Rank, facts: list[str]):
    """Guards against a refusal of an index's vectors where passages are the model's default."""
    documents = long_documents(facts)
    vectors = model.encode_document(documents)
    expected = model.rerank(QUERY, documents, document_embeddings=vectors)
    assert model.rerank(QUERY, documents, document_embeddings=vectors, long_documents="passages") == expected


@pytest.mark.parametrize(
    ("query", "change", "message"),
    [
        ("q", lambda stored: stored[:1], "one matrix of passages for each document: got 1 for 2"),
        ("q", lambda stored: [stored[0][:, :5], stored[1]], r"\[0\] must have a vector of 32 values.*got the shape"),
        ("q", lambda stored: [stored[0], stored[1][:0]], r"\[1\] must have a vector of 32 values for each passage"),
        ("q", lambda stored: [stored[0][:2], stored[1]], r"has 2 vectors for documents\[0\], which makes \d+ passages"),
        ("q", lambda stored: [stored[0] * np.nan, stored[1]], r"\[0\] has NaN"),
        (["q", "r"], lambda stored: [stored[0][:2], stored[0][:2]], "for each of 2 documents.*each of 2 queries"),
        (["q", "r", "s"], lambda stored: [stored, stored], "one matrix for each query: got 2 for 3|for each"),
    ],
)  # fmt: skip
def test_stored_passages_that_do_not_fit(tiny: E2Rank, query, change, message):
    """Guards against a ranking by the passages of a different document, or of a model with a different limit."""
    model, documents = copy.deepcopy(tiny), [WORDS, "short"]
    model.max_seq_length = LIMIT
    stored = [model.encode_document(model.listwise.passages(text)) for text in documents]
    with pytest.raises(ValueError, match=f"document_embeddings.*{message}"):
        model.rerank(query, documents, long_documents="passages", document_embeddings=change(stored))


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_side(model: E2Rank, facts: list[str], side: str):
    """Guards against passages that a tokenizer which cuts on the left splits differently."""
    expected = model.listwise.passages(WORDS)
    model.tokenizer.truncation_side = side
    assert model.listwise.passages(WORDS) == expected
    documents = [WORDS, *facts]
    stored = [model.encode_document(model.listwise.passages(text)) for text in documents]
    cold = model.rerank(QUERY, documents, long_documents="passages")
    assert_same(model.rerank(QUERY, documents, long_documents="passages", document_embeddings=stored), cold)


def test_work_follows_the_windows(model: E2Rank, spy):
    """Guards against the tokens of a whole long text in memory: no more than a prompt may need are there at a time."""
    model.replace_listwise(max_prompt_tokens=128, max_query_tokens=32)
    text = "An adult flea lives from two to three months. " * 2_000
    model.listwise.passages(text[:10])
    spy.texts.clear()
    assert len(model.listwise.passages(text)) > 500
    assert max(map(len, spy.texts)) < 10_000


def test_a_model_without_a_limit_keeps_a_document_whole(tiny: E2Rank):
    """Guards against an error where nothing is ever cut."""
    model = copy.deepcopy(tiny)
    model.max_seq_length = None
    assert model.listwise.passages(WORDS) == [WORDS]


def test_configured_and_in_remote_code(tiny: E2Rank, facts: list[str], tmp_path: Path):
    """Guards against a configuration that does nothing, and against remote code that lacks a file."""
    model, documents = copy.deepcopy(tiny), long_documents(facts)
    model.max_seq_length = LIMIT
    expected = model.rerank(QUERY, documents, long_documents="passages")
    assert expected != model.rerank(QUERY, documents), "the premise"
    model.replace_listwise(long_documents="passages")
    assert model.rerank(QUERY, documents) == expected
    model.save(str(tmp_path / "model"))
    plain = SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    assert plain.rerank(QUERY, documents) == expected


def test_threads(tiny: E2Rank, facts: list[str]):
    """Guards against shared state: threads that split and rerank get the answers of one thread."""
    model, documents = copy.deepcopy(tiny), long_documents(facts)
    model.max_seq_length = LIMIT
    expected = copy.deepcopy(model).rerank(QUERY, documents, long_documents="passages")
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: model.rerank(QUERY, documents, long_documents="passages"), range(16))
        vectors = pool.map(lambda _: model.encode_document(documents), range(16))
    assert all(answer == expected for answer in answers) and len(list(vectors)) == 16
