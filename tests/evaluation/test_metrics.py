"""Metrics by hand, against pytrec_eval and our own nDCG."""

import math
import random

import numpy as np
import pytest

from e2rank_st.evaluation.metrics import MEASURES, evaluate, mean, ndcg, separated

pytrec_eval = pytest.importorskip("pytrec_eval")


def test_by_hand():
    """Guards against another gain, cut or threshold of relevance."""
    run = {"q": {"a": 0.9, "b": 0.8, "c": 0.7}}
    judged = {"q": {"a": 1, "b": 0, "c": 3, "not found": 2}}
    found = evaluate(run, judged)
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert found["ndcg@10"]["q"] == pytest.approx((1 + 3 / 2) / ideal)
    assert found["ndcg@1"]["q"] == pytest.approx(1 / 3)
    assert found["map"]["q"] == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert found["mrr@10"]["q"] == 1.0
    assert found["recall@1"]["q"] == pytest.approx(1 / 3)
    strict = evaluate(run, judged, relevant_from=2)
    assert strict["mrr@10"]["q"] == pytest.approx(1 / 3)
    assert strict["map"]["q"] == pytest.approx((1 / 3) / 2)
    assert strict["recall@5"]["q"] == 1 / 2
    assert strict["ndcg@10"] == found["ndcg@10"], "nDCG takes the grades as they are"
    # trec_eval's own reciprocal rank is not cut.
    run = {"q": {f"d{place}": 100.0 - place for place in range(12)}}
    assert evaluate(run, {"q": {"d9": 1}})["mrr@10"]["q"] == pytest.approx(1 / 10)
    assert evaluate(run, {"q": {"d10": 1}})["mrr@10"]["q"] == 0.0


def test_all_measures_against_pytrec_eval_and_our_ndcg():
    """Guards against names that are mixed up between metrics, and numbers that cannot stand beside published ones."""
    draw = random.Random(3)
    run = {f"q{q}": {f"d{d}": draw.random() for d in range(30)} for q in range(8)}
    judged = {query: {f"d{d}": draw.randint(-1, 3) for d in range(0, 40, 2)} for query in run}
    found = evaluate(run, judged)
    theirs = pytrec_eval.RelevanceEvaluator(judged, {name for name, _ in MEASURES.values()}).evaluate(run)
    for measure, (name, cut) in MEASURES.items():
        if cut is None:
            assert found[measure] == pytest.approx({query: theirs[query][name] for query in run}), measure
    for query, scores in run.items():
        order = sorted(scores, key=scores.get, reverse=True)
        expected = ndcg([judged[query].get(document) for document in order], judged[query].values())
        assert found["ndcg@10"][query] == pytest.approx(expected, abs=1e-9)
    assert mean(found["map"]) == pytest.approx(sum(found["map"].values()) / 8)


def test_unjudged_query_is_refused():
    """Guards against pytrec_eval, which leaves such a query out of the mean without a word."""
    run = {"q": {"a": 1.0}, "p": {"a": 1.0}}
    assert "p" not in pytrec_eval.RelevanceEvaluator({"q": {"a": 1}}, {"map"}).evaluate(run), "the premise"
    with pytest.raises(ValueError, match="1 queries lack judgements, for example 'p'"):
        evaluate(run, {"q": {"a": 1}})


def test_ties_keep_the_order_of_the_ranking():
    """Guards against trec_eval, which orders equal scores by document id: another ranking than the one written."""
    scores, ids = [0.5, 0.5, 0.5, 0.25], ["a", "b", "c", "d"]
    judged = {"q": {"a": 1, "b": 0}}
    tied = evaluate({"q": dict(zip(ids, scores, strict=True))}, judged)
    assert tied["mrr@10"]["q"] == pytest.approx(1 / 3), "the premise"
    apart = separated(scores)
    assert evaluate({"q": dict(zip(ids, apart, strict=True))}, judged)["mrr@10"]["q"] == 1.0
    assert np.float32(apart[1]) == np.nextafter(np.float32(0.5), np.float32(0))
    assert apart[0] == 0.5
    assert apart[3] == 0.25
    assert apart == pytest.approx(scores, abs=1e-6)
    assert separated([1 + 1e-12, 1.0])[1] < 1.0, "apart in float64 only"
    assert separated([0.0, 0.0, -1.0])[1] < 0


def test_scores_that_are_no_ranking_are_refused():
    """Guards against a run file in another order than the ranking, and against NaN, which compares with nothing."""
    for scores in ([0.1, 0.2], [math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="give finite scores, the best first"):
            separated(scores)


def test_ndcg_by_hand() -> None:
    """Guards against another gain, discount or cut, and against unjudged or negative grades that count."""
    assert ndcg([3, 2, 0]) == 1.0
    # Gains 0, 3, 2 at ranks 1, 2, 3; ideally 3, 2, 0.
    expected = (3 / math.log2(3) + 2 / 2) / (3 + 2 / math.log2(3))
    assert ndcg([0, 3, 2]) == pytest.approx(expected)
    assert ndcg([0] * 10 + [3]) == 0.0
    assert ndcg([1], ideal=[1, 1]) == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert ndcg([None, -1, 0]) == 0.0
    assert ndcg([]) == 0.0
    assert ndcg([None, 2, -1]) == ndcg([0, 2, 0])
