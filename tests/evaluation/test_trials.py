"""Every setting on every query: the arithmetic on cosines is what rerank does, and little is embedded."""

from collections import Counter

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.evaluation.metrics import ndcg
from e2rank_st.evaluation.trials import FIRST_STAGE, JudgedLists, Setting, mixed, run_trials, settings_of
from e2rank_st.search.texts import TextVectors

OWN = Setting("given", 2, 0.4, 0.0)


@pytest.fixture(scope="module")
def lists(facts: list[str]) -> JudgedLists:
    """Three queries over eight to ten facts; the first stage is blind."""
    queries = ["how long do fleas live", "where is Beijing", "what melts"]
    documents = [facts, facts[:9], facts[2:]]
    grades = [
        [float(draw) for draw in np.random.default_rng(row).integers(0, 3, len(d))] for row, d in enumerate(documents)
    ]
    scores = [
        sorted(np.random.default_rng(9 + row).normal(size=len(d)), reverse=True) for row, d in enumerate(documents)
    ]
    return JudgedLists(queries, documents, grades, grades, scores)


def test_settings_start_with_what_changes_least():
    """Guards against a model's own setting that is not tried, one tried twice, and a tie that reranks for nothing."""
    settings = settings_of(OWN, [1, 3], ("given", "similarity"), fuses=True)
    assert settings[0] == FIRST_STAGE
    assert OWN in settings and OWN._replace(query_weight=1.0) in settings
    assert len(set(settings)) == len(settings) == 1 + 4 + 2 * 3 * 5 * 4
    shares = [setting.first_stage_weight for setting in settings[5:]]
    assert shares == sorted(shares, reverse=True)
    assert {setting.first_stage_weight for setting in settings_of(OWN, [1], ("given",), fuses=False)[1:]} == {0.0}


def test_mix_in_closed_form():
    """Guards against scores that are standardised over the wrong axis, with the wrong deviation, or divided by zero."""
    plain, prompt, first = np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([30.0, 10.0])
    settings = [
        FIRST_STAGE,
        Setting("given", 1, 0.25, 0.0),
        Setting("given", 1, 0.25, 0.6),
        Setting("given", 1, 0.5, 0.6),
    ]
    made = mixed(settings, plain, {("given", 1): prompt}, first)
    expected = [[0, -1], [0.75, 0.25], [1, -1], [0.6, -0.6]]  # the last cosines are equal: zeros
    np.testing.assert_allclose(made, expected, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_ranks_as_the_model_does(tiny: E2Rank, lists: JudgedLists, weight: float):
    """Guards against a setting that is found good and then ranks otherwise in use."""
    trials = run_trials(tiny, lists, TextVectors.build(tiny, lists.documents[0]))
    found = [setting for setting in trials.settings if (*setting[2:],) == (weight, 0.0)]
    assert len(found) == (1 if weight == 1 else 2 * len({1, 2, 3, 5, 10}))
    for setting in found:
        options = {name: value for name, value in setting._asdict().items() if name != "first_stage_weight"}
        rankings = tiny.rerank(lists.queries, lists.documents, **options)
        expected = [
            ndcg([grades[hit["corpus_id"]] for hit in ranking], grades)
            for ranking, grades in zip(rankings, lists.grades, strict=True)
        ]
        assert trials.of(setting) == expected, setting
    assert trials.of(FIRST_STAGE) == [ndcg(grades) for grades in lists.grades]


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_mixes_the_first_stage_as_the_model_does(tiny: E2Rank, lists: JudgedLists, share: float):
    """Guards against a mix of the first stage that is tuned in one way and computed in another."""
    trials = run_trials(tiny, lists, TextVectors.build(tiny, lists.documents[0]))
    for setting in (setting for setting in trials.settings if setting.first_stage_weight == share):
        rankings = tiny.rerank(lists.queries, lists.documents, first_stage_scores=lists.scores, **setting._asdict())
        expected = [
            ndcg([grades[hit["corpus_id"]] for hit in ranking], grades)
            for ranking, grades in zip(rankings, lists.grades, strict=True)
        ]
        assert trials.of(setting) == expected, setting


def test_embeds_little(tiny: E2Rank, lists: JudgedLists, monkeypatch: pytest.MonkeyPatch):
    """Guards against prompts that are embedded again for every weight, and documents for every setting."""
    index = TextVectors.build(tiny, lists.documents[0])
    embedded: Counter[str] = Counter()
    forward = type(tiny).forward

    def counting(self: E2Rank, features: dict, *args: object, **kwargs: object) -> dict:
        rows = zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True)
        embedded.update(str([id_ for id_, mask in zip(ids, masks, strict=True) if mask]) for ids, masks in rows)
        return forward(self, features, *args, **kwargs)

    monkeypatch.setattr(type(tiny), "forward", counting)
    run_trials(tiny, lists, index)
    assert set(embedded.values()) == {1}
    assert len(embedded) <= 3 + 3 * 2 * 5  # queries, and prompts of two orders and five K


def test_one_order_if_the_first_stage_is_the_model(tiny: E2Rank, facts: list[str]):
    """Guards against every prompt embedded twice where both orders are the same, and a query without candidates."""
    index = TextVectors.build(tiny, facts)
    queries = ["how long do fleas live", "what melts"]
    _, rows = index.retrieve(tiny.encode_query(queries), 6)
    documents = [[facts[row] for row in part] for part in rows]
    grades = [[0.0] * 5 + [1.0]] * 2
    lists = JudgedLists([*queries, "nothing"], [*documents, []], [*grades, []], [*grades, [1.0]])
    trials = run_trials(tiny, lists, index)
    assert {setting.candidate_order for setting in trials.settings[1:]} == {tiny.listwise.candidate_order}
    assert trials.of(trials.plain) == trials.of(FIRST_STAGE)
    assert trials.scores[:, 2].tolist() == [0.0] * len(trials.settings)
    assert trials.configured == Setting("given", 6, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grades": [[1.0]]}, "2 documents, 1 grades, 2 scores"),
        ({"scores": [[1.0]]}, "2 documents, 2 grades, 1 scores"),
        ({"scores": [[1.0, float("nan")]]}, "not finite"),
        ({"queries": []}, "'queries': 0"),
    ],
)
def test_refuses_what_does_not_belong_together(change: dict, message: str):
    """Guards against a list that is cut to the shorter one, and NaN that sorts anywhere."""
    right = {"queries": ["q"], "documents": [["a", "b"]], "grades": [[1, 0]], "ideal": [[1]], "scores": [[2, 1]]}
    JudgedLists(**right)
    with pytest.raises(ValueError, match=message):
        JudgedLists(**right | change)
