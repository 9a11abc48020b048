"""Labels of slates: nothing gets lost on the way to a loss, and nothing impossible arrives there."""

import random

import pytest
import torch

from e2rank_st.storage import text_id
from e2rank_st.training.labels import Lessons, SlateLabels, positives, preferences
from e2rank_st.training.objectives import localized
from tests.training.labelled import INF, NAN, RAGGED, fill_up, slates


def test_lessons_are_what_the_losses_count():
    """Guards against data that is refused and would teach, or is taken and would not."""
    draw = random.Random(0)
    for _ in range(300):
        number = draw.randint(1, 4)
        labels = [draw.choice([None, 0, 1, 1 + 1e-9]) for _ in range(number)]
        gold = [draw.random() < 0.3 for _ in range(number)]
        known = SlateLabels.from_rows([labels], [gold], [[str(place) for place in range(number)]])
        counted = (
            positives(known).any(),
            preferences(known.labels).any(),
            localized(torch.zeros(1, number), known).number,
        )
        assert Lessons.of(labels, gold) == tuple(map(bool, counted)), (labels, gold)


def test_pack_round_trip():
    """Guards against labels or ids that change on the way through a trainer: DeepSpeed's casts floats to half."""
    known = slates([[1 / 3, None, 5], [-7.5]], gold=[[0, 1, 0], [1]])
    packed = known.pack()
    assert packed.shape == (2, 3, 3)
    assert packed.dtype == torch.int64
    labels, gold, text_ids = SlateLabels.unpack(packed)
    torch.testing.assert_close(labels, torch.tensor([[1 / 3, NAN, 5], [-7.5, -INF, -INF]]), equal_nan=True)
    assert gold.tolist() == [[False, True, False], [True, False, False]]
    assert torch.equal(text_ids, known.text_ids)
    assert text_ids.max() > 2**53  # more than any float holds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([[1, 0], [INF, 0]])}, r"Slate 1 has a label of \+inf"),
        ({"labels": torch.tensor([[1, 0], [0, -INF]]), "gold": torch.ones(2, 2).bool()}, "Slate 1 has a padding row"),
        ({"labels": torch.tensor([[-INF, -INF], [0, 1]])}, "Slate 0 has no document"),
        ({"gold": torch.zeros(2, 3).bool()}, r"one shape \(B, N\)"),
        ({"labels": torch.zeros(2), "gold": torch.zeros(2).bool(), "text_ids": torch.zeros(2).long()}, "one shape"),
    ],
)
def test_pack_refuses(change, message):
    """Guards against labels that would train silently wrong."""
    known = slates([[1, 0], [0, 1]])
    known.pack()
    with pytest.raises(ValueError, match=message):
        known._replace(**change).pack()


@pytest.mark.parametrize("packed", [None, [[1.0]], torch.zeros(2, 3, 3), torch.zeros(2, 3).long()])
def test_unpack_refuses(packed):
    """Guards against labels of another loss or collator: scores, or nothing at all."""
    with pytest.raises(ValueError, match=r"int64 tensor \(B, N, 3\), got"):
        SlateLabels.unpack(packed)


@pytest.mark.parametrize("texts", [[["a"]], [["a", "b"], ["c", "d"]], []])
def test_from_rows_refuses(texts):
    """Guards against labels that have slipped from one document to another."""
    with pytest.raises(ValueError, match="one of each for every document"):
        SlateLabels.from_rows([[1, 0], [1]][: len(texts)], [[1, 0], [1]][: len(texts)], texts)


def test_text_ids_do_not_depend_on_the_process():
    """Guards against Python's own hash, which differs from process to process: the same text would be a negative."""
    assert text_id("fleas") == 0x51789525C75F311E
    assert 0 <= text_id("\ud800") < 2**63


@pytest.mark.parametrize(
    ("labels", "gold", "expected"),
    [
        ([3, 1, 2], [0, 1, 0], [0, 1, 0]),  # gold before the teacher's first
        ([3, None, 2], [0, 1, 0], [0, 1, 0]),
        ([3, 1, 2], [0, 1, 1], [0, 1, 1]),
        ([1, 2, 2], [0, 0, 0], [0, 1, 0]),  # the first of equals
        ([None, -4, None], [0, 0, 0], [0, 1, 0]),
        ([None, 1, 0], [0, 0, 0], [0, 1, 0]),
        ([1, 1, None], [0, 0, 0], [0, 0, 0]),  # no preference
        ([None, None, None], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_positives(labels, gold, expected):
    """Guards against a teacher's first that displaces the known answer, and against positives that nobody named."""
    known = fill_up(slates([labels], gold=[gold]), 1)
    assert positives(known).tolist() == [[*map(bool, expected), False]]


def test_preferences():
    """Guards against pairs of ties, of what is unjudged or of padding."""
    expected = [(0, 0, 1), (0, 0, 2), (0, 0, 4), (0, 1, 4), (0, 2, 4), (1, 1, 0)]
    assert [tuple(pair) for pair in preferences(RAGGED.labels).nonzero().tolist()] == expected
