"""nDCG by hand and against trec_eval's, the three systems of the evaluator, and the test of their difference."""

import copy
import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from e2rank_st import E2Rank
from e2rank_st.data.slates import Slate
from e2rank_st.evaluation.evaluator import SYSTEMS, RerankingEvaluator
from e2rank_st.evaluation.metrics import ndcg
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct
from tests.toy import toy_rows, train_a_step


def evaluator(rows: list[dict[str, Any]], **options: Any) -> RerankingEvaluator:
    """An evaluator on rows of slates."""
    return RerankingEvaluator(*([row[name] for row in rows] for name in ("query", "documents", "labels")), **options)


def constant(model: E2Rank) -> E2Rank:
    """A model that embeds all texts alike."""
    model = copy.deepcopy(model)
    model[0].forward = lambda features, **_: {
        **features, "token_embeddings": torch.ones(*features["input_ids"].shape, model.get_embedding_dimension())
    }  # fmt: skip
    return model


def test_systems_are_those_of_encode_and_rerank(tiny: E2Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against other rankings than those of the methods that users call, and chunks that mix up queries."""
    rows = toy_rows(5, seed=4)
    scores = evaluator(rows, name="toy").scores(tiny)
    monkeypatch.setattr("e2rank_st.evaluation.evaluator.QUERIES_AT_ONCE", 3)
    assert evaluator(rows).scores(tiny) == scores
    for index, row in enumerate(rows):
        similarity = tiny.similarity(tiny.encode_query(row["query"]), tiny.encode_document(row["documents"]))[0]
        orders = {
            "first_stage": range(len(row["documents"])),
            "embedding": similarity.argsort(descending=True).tolist(),
            "listwise": [hit["corpus_id"] for hit in tiny.rerank(row["query"], row["documents"])],
        }
        for system, order in orders.items():
            assert scores[system][index] == pytest.approx(ndcg([row["labels"][place] for place in order]))


def test_given_vectors_are_used_by_their_model_alone(tiny: E2Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against texts that are embedded in every run, and against vectors of a model that has changed."""
    rows = toy_rows(5, seed=4)
    given, fresh = evaluator(rows), evaluator(rows)
    texts = distinct(given.documents)
    queries = distinct([given.queries])
    given.use(tiny, TextVectors(texts, tiny.encode_document(texts)), TextVectors(queries, tiny.encode_query(queries)))
    other = copy.deepcopy(tiny)
    train_a_step(other, rate=1e-1)
    expected = fresh.scores(tiny), evaluator(rows).scores(other)
    embedded = Mock(wraps=tiny.encode_document)
    monkeypatch.setattr(tiny, "encode_document", embedded, raising=False)
    assert given.scores(tiny) == expected[0]
    assert not embedded.called
    assert given.scores(other) == expected[1]


def test_metrics(tiny: E2Rank) -> None:
    """Guards against names that a trainer does not find."""
    rows = toy_rows(3, seed=5)
    measured = evaluator(rows, name="toy")
    metrics = measured(tiny)
    assert list(metrics) == [f"toy_{system}_ndcg@10" for system in SYSTEMS]
    assert measured.primary_metric == "toy_listwise_ndcg@10"
    assert measured.greater_is_better
    assert metrics["toy_listwise_ndcg@10"] == pytest.approx(sum(measured.per_query["listwise"]) / 3)
    assert list(evaluator(rows)(tiny)) == [f"{system}_ndcg@10" for system in SYSTEMS]


@pytest.mark.parametrize("useless", [False, True])
def test_own_first_stage_does_not_see_the_given_order(tiny: E2Rank, useless: bool) -> None:
    """Guards against candidates that list positives first: any model would reach 1.0 by leaving them where they are."""
    model = constant(tiny) if useless else tiny
    rows = toy_rows(12, seed=6)
    turned = [row | {name: row[name][::-1] for name in ("documents", "labels")} for row in rows]
    forward, backward = (evaluator(part, own_first_stage=True).scores(model) for part in (rows, turned))
    assert forward == backward
    trusting = evaluator(rows).scores(model)
    assert trusting["first_stage"] == [1.0] * 12, "the premise: the positive stands first"
    if useless:
        assert trusting["listwise"] == [1.0] * 12, "the premise: ties keep the given order"
        assert sum(forward["listwise"]) < 0.9 * 12


def test_slates_and_queries_without_candidates(tiny: E2Rank) -> None:
    """Guards against an empty list that stops an evaluation, and against slates read in another order."""
    rows = toy_rows(2, seed=9)
    slates = [Slate(*(row[name] for name in ("query", "documents", "labels"))) for row in rows]
    assert RerankingEvaluator.from_slates(slates).scores(tiny) == evaluator(rows).scores(tiny)
    empty = {"query": "nothing", "documents": [], "labels": []}
    scores = evaluator([*rows, empty]).scores(tiny)
    assert [scores[system][2] for system in SYSTEMS] == [0.0, 0.0, 0.0]


def test_judgements_count_what_was_not_retrieved(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against an ideal ranking of the candidates only, which flatters a first stage that misses documents."""
    hits = [{"content": f"text {place}", "docid": f"d{place}", "qid": "q", "rank": place} for place in range(3)]
    other = [{"content": "other", "docid": "x", "qid": "other", "rank": 1}]
    rows = [{"query": "another", "hits": other}, {"query": "a query", "hits": hits}]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "qrels.txt").write_text("other 0 x 1\nq 0 d0 1\nq 0 d1 0\nq 0 elsewhere 3\n", encoding="utf-8")
    measured = RerankingEvaluator.from_results(tmp_path / "run.jsonl", tmp_path / "qrels.txt", places=[1], name="run")
    assert measured.queries == ["a query"]
    assert measured.scores(tiny)["first_stage"] == [pytest.approx(1 / (3 + 1 / math.log2(3)))]


def test_lists_that_do_not_fit_are_refused() -> None:
    """Guards against grades of other documents."""
    with pytest.raises(ValueError, match="at least one query"):
        RerankingEvaluator([], [], [])
    with pytest.raises(ValueError, match="one of each for every query"):
        RerankingEvaluator(["a"], [["b"], ["c"]], [[1]])
    with pytest.raises(ValueError, match="'a' has 2 candidates and 1 grades"):
        RerankingEvaluator(["a"], [["b", "c"]], [[1]])
