"""Smaller corpora, dealt lists and claims: the draws, the whole groups, and the same result on every machine."""

import pytest

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.slates import Slate
from e2rank_st.labelling import drawing
from e2rank_st.labelling.drawing import cut, deal, draw_part, thin, with_claims, with_siblings, without


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


def test_answers_of_one_question_are_drawn_together() -> None:
    """Guards against questions that are left out because a part of their answers is."""
    corpus = {f"d{number}": f"text {number}" for number in range(30)}
    judgements = {f"q{number}": {f"d{3 * number + place}": 1.0 for place in range(3)} for number in range(8)}
    judgements["joins"] = {"d0": 1.0, "d3": 1.0}
    whole = JudgedCorpus(corpus, {query: query for query in judgements}, judgements)
    for seed in "0123":
        part = draw_part(whole, 12, 100, seed)
        for grades in judgements.values():
            assert len(grades.keys() & part.corpus.keys()) in (0, len(grades))
        assert ("d0" in part.corpus) == ("d5" in part.corpus)  # "joins" makes one group of two
        assert 12 <= len(part.corpus) <= 17


def test_preferred_questions_are_drawn_first() -> None:
    """Guards against a template that takes the place of claims."""
    queries = {f"q{number}": f"{'Effect of' if number % 3 else 'Claim'} {number}" for number in range(30)}
    judgements = {query: {f"d{query}": 1.0} for query in queries}
    whole = JudgedCorpus({f"d{query}": "text" for query in queries}, queries, judgements)
    part = draw_part(whole, 100, 14, "0", first="^(?!Effect of )")
    assert sum(queries[query].startswith("Claim") for query in part.judgements) == 10
    assert len(part.judgements) == 14


def test_siblings_are_judged_so_that_they_are_not_mined() -> None:
    """Guards against a grade that is lost, and against siblings of some answers only."""
    corpus = {f"{group}#{number}": "text" for group in "abc" for number in range(2)}
    judged = with_siblings(JudgedCorpus(corpus, {"q": "asked"}, {"q": {"a#1": 1.0, "b#0": 1.0}})).judgements
    assert judged == {"q": {"a#1": 1.0, "b#0": 1.0, "a#0": 0.0, "b#1": 0.0}}


def test_documents_are_left_out_with_their_judgements() -> None:
    """Guards against judgements of documents that are gone, and against queries without an answer."""
    whole = JudgedCorpus({"a": "1", "b": "2"}, {"q": "asked", "r": "too"}, {"q": {"a": 1.0}, "r": {"a": 0.0, "b": 1.0}})
    rest = without(whole, {"a"})
    assert rest.corpus == {"b": "2"} and rest.judgements == {"r": {"b": 1.0}}


def test_a_mined_slate_is_cut() -> None:
    """Guards against slates of golds alone, judged ones that push a gold out, and candidates that lose their order."""
    slate = Slate("q", tuple("wxABCDmno"), (0, 0, 1, 1, 2, 1, None, None, None), (0, 0, 1, 1, 1, 1, 0, 0, 0), "s")
    assert cut(slate, 5, 8, seed=0).documents == ("w", "A", "B", "C", "D")
    few = cut(slate, 6, 2, seed=0)
    assert sum(few.gold) == 2 and len(few) == 6 and few == cut(slate, 6, 2, seed=0)
    assert [text for text in few.documents if text in "wxmno"] == ["w", "x", "m", "n"]
    assert len({cut(slate, 6, 2, seed=seed).documents for seed in range(9)}) > 1
    assert cut(slate, 6, 4, seed=0, judged_wrong=False).documents == tuple("ABCDmn")


def test_a_list_is_thinned_in_its_order() -> None:
    """Guards against labels that leave their document, and against an error for a short list."""
    slate = Slate("q", tuple(map(str, range(50))), tuple(map(float, range(50))), source="s")
    part = thin(slate, 10, seed=0)
    assert len(part) == 10 and [float(text) for text in part.documents] == list(part.labels) == sorted(part.labels)
    assert part == thin(slate, 10, seed=0) != thin(slate, 10, seed=1)
    assert thin(slate, 60, seed=0) == slate


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
