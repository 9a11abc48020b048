"""Smaller corpora, dealt lists and claims: the draws, the whole groups, and the same result on every machine."""

import pytest

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.slates import Slate
from e2rank_st.labelling import drawing
from e2rank_st.labelling.drawing import deal, draw_part, with_claims


def test_long_lists_are_dealt_out() -> None:
    """Guards against labels that leave their document, equal slates, and another deal on every run."""
    slate = Slate("q", tuple(map(str, range(50))), tuple(map(float, range(50))), source="s")
    parts = list(deal(slate, 5, 12, seed=0))
    assert [len(part) for part in parts] == [12] * 5
    assert all(float(text) == label for part in parts for text, label in zip(part.documents, part.labels, strict=True))
    assert len({part.documents for part in parts}) == 5
    assert parts == list(deal(slate, 5, 12, seed=0)) != list(deal(slate, 5, 12, seed=1))
    assert list(deal(slate, 5, 50, seed=0)) == [slate]


def test_groups_are_drawn_whole_and_questions_have_their_answers() -> None:
    """Guards against hard negatives that stay behind, and questions whose answer is not among the candidates."""
    corpus = {f"{group}#{number}": f"text {group} {number}" for group in range(20) for number in range(5)}
    queries = {f"q{group}": f"query {group}" for group in range(20)}
    whole = JudgedCorpus(corpus, queries, {f"q{group}": {f"{group}#0": 1.0} for group in range(20)})
    part = draw_part(whole, 30, 4, "0")
    assert len(part.corpus) == 30
    assert len({id_.partition("#")[0] for id_ in part.corpus}) == 6
    assert len(part.judgements) == 4
    assert all(grades.keys() <= part.corpus.keys() for grades in part.judgements.values())
    assert part == draw_part(whole, 30, 4, "0") != draw_part(whole, 30, 4, "1")


def test_claims_are_taken_out_of_documents_that_answer_no_question() -> None:
    """Guards against a claim that stands in its document word by word, and against questions that lose their answer."""
    sentence = "The cat flea number {} is the most common one on cats and on dogs."
    corpus = {f"d{number}": f"A beginning. {sentence.format(number)} An end." for number in range(20)}
    whole = JudgedCorpus(corpus | {"short": "No claim."}, {"q": "which flea", "other": "split"}, {"q": {"d0": 1.0}})
    both = with_claims(whole, 5, seed=0)
    claims = {query: document for query, grades in both.judgements.items() for document in grades if query != "q"}
    assert len(claims) == 5
    assert both.judgements["q"] == {"d0": 1.0} and both.queries["q"] == "which flea"
    assert both.queries.keys() == both.judgements.keys()
    for query, document in claims.items():
        assert both.corpus[document] == "A beginning. An end."
        words = both.queries[query].split()
        left = iter(sentence.format(document[1:]).split())
        assert words and all(word in left for word in words)  # some of its words, in their order
    assert min(len(both.queries[query].split()) for query in claims) < len(sentence.split())
    assert all(both.corpus[id_] == text for id_, text in whole.corpus.items() if id_ not in claims.values())
    assert both == with_claims(whole, 5, seed=0) != with_claims(whole, 5, seed=1)
    assert len(with_claims(whole, 100, seed=0).judgements) == 20


def test_a_claim_is_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a query without a word, which no reader of slates takes."""
    monkeypatch.setattr(drawing, "DROPPED", (1.0,))
    sentence = "The cat flea is the most common flea on cats and dogs."
    both = with_claims(JudgedCorpus({"d": f"A beginning. {sentence} An end."}, {}, {}), 1, seed=0)
    assert list(both.queries.values()) == [sentence]
