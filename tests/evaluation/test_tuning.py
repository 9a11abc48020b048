"""Is reranking worth it? Known answers on made scores, and no answer on noise."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.evaluation import tuning as tuning_module
from e2rank_st.evaluation.trials import FIRST_STAGE, Scores, Setting, Trials, settings_of
from e2rank_st.evaluation.tuning import LEAST_QUERIES, chance, cross_validate, judge, tune, write_setting
from tests.toy import toy_rows

OWN = Setting("given", 3, 0.5, 0.0)
BEST = Setting("similarity", 3, 0.3, 0.5)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the randomisation test: it is exact enough, and fast."""
    monkeypatch.setattr(tuning_module, "SAMPLES", 400)
    monkeypatch.setattr(tuning_module, "REPEATS", 5)


def made(number: int, *, gain: float, seed: int = 0, noise: float = 0.1) -> Trials:
    """Scores where one setting gains, and all others are the first stage with noise."""
    draw = np.random.default_rng(seed)
    settings = settings_of(OWN, [1, 3], ("given", "similarity"), fuses=True)
    scores = draw.uniform(0.2, 0.8, number) + draw.normal(0, noise, (len(settings), number))
    scores[settings.index(BEST)] += gain
    return Trials(settings, scores, OWN._replace(query_weight=1.0), OWN)


def test_finds_the_best_setting():
    """Guards against a setting that is not the best, and a gain that is that of other queries."""
    found = judge(made(60, gain=0.2))
    assert (found.verdict, found.setting, found.queries_needed) == ("rerank", BEST, None)
    assert found.gain.difference == pytest.approx(0.2, abs=0.05)
    low, high = found.gain.interval
    assert 0 < low < found.gain.difference < high and found.gain.p < 0.01
    assert found.agreement == 1.0
    assert found.trials[0][0] == BEST and len(found.trials) == len(made(2, gain=0).settings)
    assert found.held_out - found.first_stage == pytest.approx(found.gain.difference)
    assert "Rerank, with these settings: candidate_order=similarity, num_prompt_documents=3" in found.sentences()[0]


def test_harm_is_seen():
    """Guards against a command that sells reranking to those whom it harms."""
    trials = made(60, gain=0.0)
    trials.scores[1:] -= 0.2
    found = judge(trials)
    assert (found.verdict, found.setting) == ("do not rerank", FIRST_STAGE)
    assert found.gain.difference == pytest.approx(0)
    assert found.sentences()[0].startswith("Do not rerank")


def test_a_gain_too_small_to_matter_is_not_worth_it():
    """Guards against "cannot be told" where the interval excludes every gain that would be worth a forward pass."""
    trials = made(60, gain=0.0, noise=0.0)
    trials.scores[3] += np.random.default_rng(1).normal(0.001, 0.005, 60)
    assert judge(trials).verdict == "do not rerank"


def test_noise_gets_no_recommendation():
    """Guards against settings that are chosen and judged by the same queries: they always seem to gain."""
    found = [judge(made(40, gain=0.0, seed=seed, noise=0.2)) for seed in range(20)]
    gains = [one.gain.difference for one in found]
    assert abs(statistics.fmean(gains)) < 3 * statistics.stdev(gains) / len(gains) ** 0.5
    assert sum(one.verdict == "rerank" for one in found) <= 3, "5 % of 20 are 1"
    optimism = [one.trials[0][1] - one.first_stage for one in found]
    assert statistics.fmean(optimism) > 0.04, "the premise: on the same queries, the best of noise seems to gain much"


@pytest.mark.parametrize("number", [2, 4, LEAST_QUERIES - 1])
def test_few_queries_tell_nothing(number: int):
    """Guards against a verdict from a handful of queries, however large their gain, and a crash with two."""
    found = judge(made(number, gain=0.5))
    assert found.verdict == "cannot be told"
    assert found.queries_needed is not None and found.queries_needed >= LEAST_QUERIES
    assert f"Only {number} queries" in found.sentences()[-1]


def test_number_of_queries_that_would_tell():
    """Guards against a number that is not that of a test with a power of 80 %: (2.8 · deviation / gain)²."""
    found = judge(made(40, gain=0.02, noise=0.15))
    assert found.verdict == "cannot be told"
    gains = [a - b for a, b in zip(found.per_query["held_out"], found.per_query["first_stage"], strict=True)]
    distance = max(found.gain.difference, 0.01 - found.gain.difference)
    assert found.queries_needed == pytest.approx((2.8 * statistics.stdev(gains) / distance) ** 2, abs=1)
    assert found.queries_needed > 40
    assert f"about {found.queries_needed} judged queries" in found.sentences()[0]


def test_no_query_chooses_for_itself():
    """Guards against a leak: a query's own score must not decide which setting scores it."""
    scores = np.zeros((3, 10))
    scores[1, :5] = scores[2, 5:] = 1  # each half likes its own setting
    held_out, chosen = cross_validate(scores)
    assert held_out.mean() < 0.45, "a leak would give 1, and a fixed setting 0.5"
    assert chosen.sum() == 5 * 5
    again, _ = cross_validate(scores)
    assert again.tolist() == held_out.tolist()


def test_ties_keep_the_first_stage():
    """Guards against a forward pass a query for settings that change nothing."""
    same = Trials(made(2, gain=0).settings, np.full((65, 40), 0.1) * np.arange(40), OWN)
    found = judge(same)
    assert (found.setting, found.verdict, found.gain.p) == (FIRST_STAGE, "do not rerank", 1.0)


def test_chance_counts_the_choice():
    """Guards against a p-value that forgets that the best of many settings was taken."""
    draw = np.random.default_rng(0)
    values = [chance(_noise(draw), seed=seed) for seed in range(60)]
    assert sum(value < 0.05 for value in values) <= 8, "5 % of 60 are 3"
    assert 0.25 < statistics.fmean(values) < 0.75
    assert chance(_noise(draw) + 0.3) == 1 / 401


def _noise(draw: Any) -> Scores:
    differences: Scores = draw.normal(0, 0.2, (40, 30))
    differences[0] = 0
    return differences


@pytest.fixture(scope="module")
def slates() -> list[dict[str, Any]]:
    """Judged lists whose documents are in a random order."""
    rows = toy_rows(32, seed=5)
    for number, row in enumerate(rows):
        order = np.random.default_rng(number).permutation(len(row["documents"]))
        row |= {name: [row[name][place] for place in order] for name in ("documents", "labels")}
    return rows


def columns(slates: list[dict[str, Any]]) -> list[list[Any]]:
    return [[row[name] for row in slates] for name in ("query", "documents", "labels")]


def test_tells_a_blind_first_stage_from_a_perfect_one(bundled: E2Rank, slates: list[dict[str, Any]]):
    """Guards against a verdict that does not depend on how good the first stage is."""
    blind = [[float(-place) for place in range(len(row["documents"]))] for row in slates]
    found = tune(bundled, *columns(slates), first_stage_scores=blind)
    assert found.verdict == "rerank" and found.gain.difference > 0.2
    assert found.setting.first_stage_weight < 0.5
    perfect = [
        {**row, **{name: [row[name][place] for place in order] for name in ("documents", "labels")}}
        for row in slates
        for order in [sorted(range(len(row["labels"])), key=lambda place: -(row["labels"][place] or 0))]
    ]
    found = tune(bundled, *columns(perfect), first_stage_scores=blind)
    assert (found.verdict, found.setting, found.first_stage) == ("do not rerank", FIRST_STAGE, 1.0)
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == "do not rerank"


def test_errors(tiny: E2Rank):
    """Guards against cross-validation of one query, and a verdict from judgements of another collection."""
    with pytest.raises(ValueError, match="Got 1 queries"):
        tune(tiny, ["q"], [["a"]], [[1]])
    with pytest.raises(ValueError, match="No candidate of any query"):
        tune(tiny, ["q", "r"], [["a"], ["b"]], [[None], [0]], ideal=[[1], [1]])


def test_writes_a_setting_into_a_model(tiny: E2Rank, tmp_path: Path):
    """Guards against other keys that are lost, a setting that loading refuses, and a half-written file."""
    tiny.save(str(tmp_path / "model"))
    before = E2Rank(str(tmp_path / "model"), device="cpu").listwise.get_config_dict()
    setting = Setting("similarity", 5, 0.3, 0.0)
    write_setting(tmp_path / "model", setting)
    after = E2Rank(str(tmp_path / "model"), device="cpu").listwise.get_config_dict()
    assert after == before | setting.options()
    with pytest.raises(ValueError, match="query_weight"):
        write_setting(tmp_path / "model", setting._replace(query_weight=2.0))
    assert E2Rank(str(tmp_path / "model"), device="cpu").listwise.get_config_dict() == after
