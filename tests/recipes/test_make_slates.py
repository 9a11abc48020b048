"""The slates of the bundled model's recipe."""

import json
from pathlib import Path

import pytest

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.slates import Slate
from tests import load_script

make_slates = load_script("recipes/e2rank-minilm-l6/make_slates.py")
Dealt, Mined, deal, draw_part = make_slates.Dealt, make_slates.Mined, make_slates.deal, make_slates.draw_part
unseen, with_claims, write_first_stage = make_slates.unseen, make_slates.with_claims, make_slates.write_first_stage


def test_long_lists_are_dealt_out() -> None:
    """Guards against labels that leave their document, equal slates, and another deal on every run."""
    slate = Slate("q", tuple(map(str, range(50))), tuple(map(float, range(50))), source="s")
    parts = list(deal(slate, Dealt("s", 5, 12), seed=0))
    assert [len(part) for part in parts] == [12] * 5
    assert all(float(text) == label for part in parts for text, label in zip(part.documents, part.labels, strict=True))
    assert len({part.documents for part in parts}) == 5
    assert parts == list(deal(slate, Dealt("s", 5, 12), seed=0)) != list(deal(slate, Dealt("s", 5, 12), seed=1))
    assert list(deal(slate, Dealt("s", 5, 50), seed=0)) == [slate]


def test_groups_are_drawn_whole_and_questions_have_their_answers() -> None:
    """Guards against hard negatives that stay behind, and questions whose answer is not among the candidates."""
    corpus = {f"{group}#{number}": f"text {group} {number}" for group in range(20) for number in range(5)}
    queries = {f"q{group}": f"query {group}" for group in range(20)}
    whole = JudgedCorpus(corpus, queries, {f"q{group}": {f"{group}#0": 1.0} for group in range(20)})
    part = draw_part(whole, Mined("s", 30, 4), seed=0)
    assert len(part.corpus) == 30
    assert len({id_.partition("#")[0] for id_ in part.corpus}) == 6
    assert len(part.judgements) == 4
    assert all(grades.keys() <= part.corpus.keys() for grades in part.judgements.values())
    assert part == draw_part(whole, Mined("s", 30, 4), seed=0) != draw_part(whole, Mined("s", 30, 4), seed=1)


def test_documents_that_dev_judges_are_left_out(tmp_path: Path) -> None:
    """Guards against dev figures of documents that were trained on, and against a set without dev that is refused."""
    rows = [json.dumps({"_id": f"d{number}", "text": f"text {number}"}) for number in range(4)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "asked"}', encoding="utf-8")
    (tmp_path / "qrels_train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n", encoding="utf-8")
    assert unseen(tmp_path).corpus.keys() == {f"d{number}" for number in range(4)}
    judged = "query-id\tcorpus-id\tscore\nq\td0\t0\nq\td2\t1\n"
    (tmp_path / "qrels_dev.tsv").write_text(judged, encoding="utf-8")
    rest = unseen(tmp_path)
    assert rest.corpus.keys() == {"d1", "d3"}
    assert rest.judgements == {}


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
    monkeypatch.setattr(make_slates, "DROPPED", (1.0,))
    sentence = "The cat flea is the most common flea on cats and dogs."
    both = with_claims(JudgedCorpus({"d": f"A beginning. {sentence} An end."}, {}, {}), 1, seed=0)
    assert list(both.queries.values()) == [sentence]


def test_first_stage_is_what_the_model_retrieves(bundled, facts: list[str], tmp_path: Path) -> None:
    """Guards against candidates of another order, and judgements of documents that are not found getting lost."""
    corpus = {f"d{number}": fact for number, fact in enumerate(facts)}
    collection = JudgedCorpus(corpus, {"q": "how long do fleas live"}, {"q": {"d0": 2.0, "d1": 0.0}})
    write_first_stage(tmp_path / "first.jsonl", bundled, collection)
    (row,) = map(json.loads, (tmp_path / "first.jsonl").read_text(encoding="utf-8").splitlines())
    scores = [hit["score"] for hit in row["hits"]]
    assert scores == sorted(scores, reverse=True)
    expected = bundled.encode_document(facts) @ bundled.encode_query("how long do fleas live")
    assert scores == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert all(corpus[hit["docid"]] == hit["content"] for hit in row["hits"])
    assert (tmp_path / "first.qrels").read_text(encoding="utf-8") == "q 0 d0 2\nq 0 d1 0\n"
