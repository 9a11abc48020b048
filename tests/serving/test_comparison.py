"""What the page shows of a search: both orders, the prompt that was embedded, and what is refused."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.embedding_e2rank import Embedder
from e2rank_st.serving.comparison import MAX_CHARACTERS, MAX_DOCUMENTS, MAX_QUERY, compare, index_of, split

QUERY = "how long do fleas live"


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The token ids of the prompts that are embedded from here on."""
    found: list[tuple[int, ...]] = []
    embed = Embedder.embed

    def spy(self, sequences, kind, prompt_length=None):
        found.extend(sequences if kind == "prompt" else ())
        return embed(self, sequences, kind, prompt_length)

    monkeypatch.setattr(Embedder, "embed", spy)
    return found


def test_both_orders_are_those_of_the_index(tiny: E2Rank, facts: list[str]):
    """Guards against a second way to rank, and a movement with the wrong sign."""
    index = index_of(tiny, facts)
    found = compare(index, QUERY, num_candidates=8)
    first = index.search(QUERY, 8, rerank=False)
    hits = index.search(QUERY, 8, 8)
    assert [place.text for place in found.retrieved] == [hit["text"] for hit in first]
    assert [(place.text, place.score) for place in found.reranked] == [(hit["text"], hit["score"]) for hit in hits]
    assert [place.rank for place in found.reranked] == list(range(1, 9))
    assert any(place.moved for place in found.reranked), "the premise: reranking changes something"
    for place in found.reranked:
        assert found.retrieved[place.rank + place.moved - 1] == place
    assert found.num_documents == 10 and found.retrieval_seconds > 0 and found.seconds > 0
    assert found.reranked[0].name == f"document {facts.index(found.reranked[0].text) + 1}"


@pytest.mark.parametrize(("limit", "held", "is_cut"), [(2_000, 3, False), (110, 3, True), (60, 2, True)])
def test_the_prompt_is_the_one_that_was_embedded(tiny: E2Rank, prompts, limit: int, held: int, is_cut: bool):
    """Guards against a prompt that is shown whole, and was embedded cut, or with fewer documents."""
    model = copy.deepcopy(tiny)
    model.replace_listwise(max_prompt_tokens=limit, instruction="Find it")
    texts = [f"Fleas {letter} " + f"live on cats {letter}. " * 9 for letter in "ABCD"]
    found = compare(index_of(model, texts), QUERY, 3 if limit > 60 else 20)
    (ids,) = prompts
    if limit == 60:
        held = sum(f"[{number}]" in found.prompt.text for number in range(1, 5))
        assert held < 4, "the premise: not all of them found room"
    assert found.prompt.text in model.tokenizer.decode(ids)
    assert len(ids) == found.prompt.num_tokens <= limit
    assert len(found.prompt.cuts) == held and any(found.prompt.cuts) == is_cut


def test_the_prompt_holds_the_best_passages(tiny: E2Rank, prompts):
    """Guards against the start of a long document, shown where its best passage was embedded."""
    model = copy.deepcopy(tiny)
    model.max_seq_length = 32
    texts = ["Iron melts. " * 20 + "How long do fleas live? " * 3 + "Bread rises. " * 20, "The Danube flows."]
    index = SearchIndex.create(None, model, texts, long_documents="passages")
    found = compare(index, QUERY)
    assert found.prompt.text in model.tokenizer.decode(prompts[0])
    assert texts[0] not in found.prompt.text and found.prompt.cuts == (False, False)


def test_k_and_w(tiny: E2Rank, facts: list[str]):
    """Guards against sliders that change nothing."""
    index = index_of(tiny, facts)
    assert compare(index, QUERY, 0).prompt.cuts == () != compare(index, QUERY, 2).prompt.cuts
    assert any(place.moved for place in compare(index, QUERY, 2, 0.0).reranked)
    assert not any(place.moved for place in compare(index, QUERY, 2, 1.0).reranked)


def test_many_threads(tiny: E2Rank, facts: list[str]):
    """Guards against visitors who get each other's results."""
    index, queries = index_of(tiny, facts), [f"{QUERY} {number}" for number in range(8)]
    show = lambda query: ((found := compare(index, query)).reranked, found.prompt)  # noqa: E731
    expected = list(map(show, queries))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(show, queries)) == expected


@pytest.mark.parametrize(
    ("query", "count", "weight", "message"),
    [
        (" \n", 3, 0.0, "The query is empty"),
        ("a" * (MAX_QUERY + 1), 3, 0.0, "The query has 2,001 characters; the most is 2,000"),
        ("fl\ud800ea", 3, 0.0, "query: half a character"),
        (QUERY, -1, 0.0, "num_prompt_documents must be an integer of at least 0"),
        (QUERY, 3, 2.0, "first_stage_weight must be a number from 0 to 1"),
        (QUERY, 3, float("nan"), "first_stage_weight must be a number from 0 to 1"),
    ],
)
def test_mistakes(tiny: E2Rank, facts: list[str], query: str, count: int, weight: float, message: str):
    """Guards against a traceback for a mistake of a visitor."""
    with pytest.raises(ValueError, match=message):
        compare(index_of(tiny, facts), query, count, weight)


def test_an_empty_index(tiny: E2Rank):
    """Guards against a page without rows and without a word."""
    with pytest.raises(ValueError, match="The collection holds no documents"):
        compare(index_of(tiny, []), QUERY)


def test_split():
    """Guards against documents that run together, and blank ones."""
    text = "One\r\nstill one.\r\n \t\r\n\r\n  Two. \n"
    assert split(text, "lines") == ["One", "still one.", "Two."]
    assert split(text, "paragraphs") == ["One\nstill one.", "Two."]
    assert len(split("a\n" * MAX_DOCUMENTS, "lines")) == MAX_DOCUMENTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n \n", "There are no documents"),
        ("a\n" * (MAX_DOCUMENTS + 1), "501 documents; the most is 500"),
        ("a" * (MAX_CHARACTERS + 1), "200,001 characters; the most is 200,000"),
    ],
)
def test_pasted_texts_that_are_refused(text: str, message: str):
    """Guards against a visitor who keeps the machine busy, and against an empty page."""
    with pytest.raises(ValueError, match=message):
        split(text, "lines")
