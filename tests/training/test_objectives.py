"""Objectives: values that can be recomputed by hand, and what must not change them."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from e2rank_st.training.objectives import drift, info_nce, localized, ranknet
from tests.training.labelled import DIMENSION, RAGGED, random, slates, text_vectors

# --- Localized contrast -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "counts"),
    [
        (slates([[1, 0, 0]], gold=[[1, 0, 0]]), [3]),
        (slates([[1, None, None, None]], gold=[[1, 0, 0, 0]]), [4]),  # what is unjudged is a negative
        (slates([[1, 1, 0], [0, 1]], gold=[[1, 1, 0], [0, 1]]), [2, 2]),  # other golds and padding are left out
        (slates([[1, 0], [3, 0], [1, 1]], gold=[[1, 0], [0, 0], [1, 1]]), [2]),  # no gold, or nothing else: skipped
    ],
)
def test_localized_of_equal_scores(known, counts):
    """Guards against a wrong candidate in the sum: with equal scores the loss is the log of their number."""
    loss = localized(torch.zeros(known.labels.shape), known)
    assert loss.number == len(counts)
    torch.testing.assert_close(loss.mean(), torch.tensor([math.log(count) for count in counts]).mean())


def test_localized_by_hand():
    """Guards against a wrong formula or scale, and against golds that push each other away."""
    known = slates([[1, 1, 0], [1, 0, 0]], gold=[[1, 1, 0], [0, 1, 0]])
    scores = torch.tensor([[0.5, 0.1, 0.3], [0.2, 0.4, 0.9]], requires_grad=True)
    loss = localized(scores, known, scale=2)
    first = (math.log(1 + math.exp(-0.4)) + math.log(1 + math.exp(0.4))) / 2
    second = math.log(1 + math.exp(-0.4) + math.exp(1.0))
    assert loss.total.item() == pytest.approx(first + second, abs=1e-6)
    loss.total.backward()
    assert (scores.grad[0, :2] < 0).all()


# --- InfoNCE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "counts"),
    [
        (slates([[1], [1], [1]]), [3, 3, 3]),  # pairs: the others' positives
        (slates([[2, 1, None], [1]]), [4, 4]),  # a ragged slate; what is unjudged is a negative
        (slates([[2, 2, 3, 1], [1]], gold=[[1, 0, 0, 0], [1]]), [3, 5]),  # no worse than the gold one: left out
        (slates([[1, 0], [1, 0]], texts=[["a", "b"], ["c", "a"]]), [3, 3]),  # a text counts once
        (slates([[1, 0], [1, 0], [1]], texts=[["a", "b"], ["a", "c"], ["d"]]), [4, 4, 4]),  # a shared positive
        (slates([[1, 0], [1, 1]], gold=[[1, 0], [1, 1]]), [4, 3]),  # other golds are left out
    ],
)
def test_info_nce_of_zero_embeddings(known, counts):
    """Guards against a wrong candidate in the sum: with equal scores the loss is the log of their number."""
    queries, documents = torch.zeros(len(counts), 2), torch.zeros(*known.labels.shape, 2)
    expected = torch.tensor([math.log(count) for count in counts]).mean()
    torch.testing.assert_close(info_nce(queries, documents, known).mean(), expected)


def test_info_nce_two_by_two():
    """Guards against a wrong formula or temperature: cosines of 1, 0 and 0.6, 0.8 by hand."""
    queries, documents = torch.tensor([[2.0, 0], [0.6, 0.8]]), torch.tensor([[[1.0, 0]], [[0, 5.0]]])
    loss = info_nce(queries, documents, slates([[1], [1]]), temperature=0.5).mean()
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp((0.6 - 0.8) / 0.5))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_several_golds_are_positives_in_turn():
    """Guards against golds that push each other away, and against slates that weigh more the more golds they have."""
    known = slates([[1, 2, 0], [1, 0, 0]], gold=[[1, 1, 0], [1, 0, 0]])
    queries, documents = random(2, DIMENSION), random(2, 3, DIMENSION, seed=1)
    scores = normalize(queries, dim=-1) @ normalize(documents.flatten(0, 1), dim=-1).T / 2  # (2, 6)

    def loss(query: int, columns: list[int]) -> Tensor:
        return -scores[query, columns].log_softmax(0)[0]

    expected = (loss(0, [0, 2, 3, 4, 5]) + loss(0, [1, 2, 3, 4, 5])) / 2 + loss(1, [3, 0, 1, 2, 4, 5])
    torch.testing.assert_close(info_nce(queries, documents, known, temperature=2).total, expected)


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
def test_duplicate_passage_in_another_slate_changes_nothing(place):
    """Guards against false negatives, and against a popular passage that counts as often as it was retrieved."""
    texts = [["a", "b", "c"], ["d", "e"], ["f", "g", "h"]]
    before = slates([[1, 1, 0], [2, 1], [1, 0, None]], gold=[[1, 1, 0], [0, 0], [1, 0, 0]], texts=texts)
    duplicate = texts[place[0]][place[1]]
    after = slates(
        [[1, 1, 0], [2, 1], [1, 0, None, None]],
        gold=[[1, 1, 0], [0, 0], [1, 0, 0, 0]],
        texts=[*texts[:2], [*texts[2], duplicate]],
    )
    queries = random(3, DIMENSION)
    losses = [info_nce(queries, text_vectors(known), known, temperature=2).mean() for known in (before, after)]
    torch.testing.assert_close(*losses)


def test_slate_without_positive():
    """Guards against a made-up positive, and against a NaN or a missing gradient where nothing can be learnt."""
    known = slates([[1, 0], [None, None]])
    queries, documents = random(2, DIMENSION).requires_grad_(), random(2, 2, DIMENSION, seed=1).requires_grad_()
    average = info_nce(queries, documents, known)
    assert average.number == 1
    average.mean().backward()
    assert queries.grad[0].any()
    assert not queries.grad[1].any()
    assert documents.grad[1].any()  # still negatives of the other query

    queries.grad = documents.grad = None
    loss = info_nce(queries, documents, slates([[1, 1], [None, None]])).mean()
    loss.backward()
    assert loss == 0
    assert not queries.grad.any() and not documents.grad.any()


# --- RankNet ----------------------------------------------------------------------------------------------------------


def test_ranknet_is_a_mean_over_pairs():
    """Guards against a wrong sign or scale, log(1 + e^5) for a margin of -0.5, and a mean over slates."""
    loss = ranknet(torch.tensor([[0.2, 0.7]]), torch.tensor([[1.0, 0.0]])).mean()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(5)), abs=1e-6)
    scores = torch.zeros(RAGGED.labels.shape)
    scores[1] = torch.tensor([0.3, 0.1, 0, 0, 0])
    swapped, equal = math.log(1 + math.exp(2)), math.log(2)
    assert ranknet(scores, RAGGED.labels).mean().item() == pytest.approx((5 * equal + swapped) / 6)


def test_unjudged_and_tied_documents_are_in_no_pair():
    """Guards against learning from what nobody judged, or from equal labels: no loss and no gradient from it."""
    scores = random(*RAGGED.labels.shape).requires_grad_()
    loss = ranknet(scores, RAGGED.labels).mean()
    loss.backward()
    known = [0, 1, 2, 4]
    assert scores.grad[0, known].all() and scores.grad[1, :2].all()
    assert not scores.grad[0, 3] and not scores.grad[1, 2:].any() and not scores.grad[2:].any()
    alone = [(scores[:1, known], RAGGED.labels[:1, known]), (scores[1:2, :2], RAGGED.labels[1:2, :2])]
    averages = [ranknet(*pair) for pair in alone]
    torch.testing.assert_close(loss, sum(a.total for a in averages) / sum(a.number for a in averages))


def test_nothing_to_learn_from():
    """Guards against a NaN or a division by zero where a batch teaches nothing."""
    scores, known = random(2, 3).requires_grad_(), slates([[1, 1, None], [None]])
    for average in (ranknet(scores, known.labels), localized(scores, known)):
        average.mean().backward()
        assert average.number == average.mean() == 0
    assert not scores.grad.any()


def test_drift():
    """Guards against a drift that depends on lengths: 0 for one direction, 1 for a right angle, 2 for opposites."""
    vectors, reference = torch.tensor([[2.0, 0], [0, 3], [-1, 0]]), torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    torch.testing.assert_close(drift(vectors, reference).mean(), torch.tensor(1.0))
    torch.testing.assert_close(drift(vectors[:1], reference[:1]).mean(), torch.tensor(0.0))
