"""Batches of a single source, the same for one process and for many, other ones in each epoch."""

import logging

import pytest
from torch.utils.data import ConcatDataset, Dataset

from e2rank_st.training.sampler import SourceBatchSampler


class Rows(Dataset[int]):
    """A source of some rows."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number


def sources(*numbers: int) -> ConcatDataset[int]:
    return ConcatDataset([Rows(number) for number in numbers])


@pytest.mark.parametrize(
    ("data", "drop_last", "sizes"),
    [
        (sources(10, 7), False, [2, 3, 4, 4, 4]),
        (sources(10, 7), True, [4, 4, 4]),
        (Rows(5), False, [1, 4]),
    ],
)
def test_single_source_and_every_row_once(data: Dataset[int], drop_last: bool, sizes: list[int]) -> None:
    """Guards against negatives from elsewhere, rows left out or trained on twice, and steps that are miscounted."""
    sampler = SourceBatchSampler(data, 4, drop_last=drop_last)
    batches = list(sampler)
    assert sorted(map(len, batches)) == sizes
    assert len(batches) == len(sampler)
    assert all(len({row < 10 for row in batch}) == 1 for batch in batches)
    rows = sorted(row for batch in batches for row in batch)
    assert len(rows) == len(set(rows)) and (drop_last or rows == list(range(len(data))))


def test_processes_share_a_large_batch() -> None:
    """Guards against a step whose processes hold different sources, or other rows than one process would."""
    one = list(SourceBatchSampler(sources(16, 9), 4, drop_last=True, seed=3))
    sampler = SourceBatchSampler(sources(16, 9), 2, drop_last=False, seed=3, processes=2)
    two = list(sampler)
    assert [first + second for first, second in zip(two[::2], two[1::2], strict=True)] == one
    assert len(sampler) == len(two) == 12


def test_epochs_and_seeds_differ_and_repeat() -> None:
    """Guards against a resumed epoch in another order: it depends on its number, not on the ones before."""
    sampler, again = (SourceBatchSampler(sources(12, 6), 3, drop_last=False, seed=1) for _ in range(2))
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(2)
    again.set_epoch(2)
    assert list(sampler) == list(again) != first
    assert list(SourceBatchSampler(sources(12, 6), 3, drop_last=False, seed=2)) != first


def test_another_source_changes_no_order() -> None:
    """Guards against sources that disturb each other's order."""
    alone = [row for batch in SourceBatchSampler(sources(8), 8, drop_last=False) for row in batch]
    joined = [batch for batch in SourceBatchSampler(sources(8, 5), 8, drop_last=False) if batch[0] < 8]
    assert joined == [alone]


def test_small_sources_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Guards against a source that is silently never trained on."""
    with caplog.at_level(logging.WARNING):
        SourceBatchSampler(sources(20, 3), 2, drop_last=True, processes=2)
    assert "1 of 2 sources have fewer rows than the batch of all processes, 4: numbers [1]" in caplog.text
    with pytest.raises(ValueError, match="Nothing is left to train on"):
        SourceBatchSampler(sources(3, 3), 2, drop_last=True, processes=2)
