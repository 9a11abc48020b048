"""Data sets → batches of a single source each, the same for any number of processes.

In-batch negatives from a different source are too easy: they teach to tell sources apart, and not passages.
Sentence-Transformers' proportional sampler keeps a batch to one source, but gives the processes of one step batches of
different sources. Its plain random sampler repeats the first epoch's order when a later one is resumed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sized

import torch
from sentence_transformers.base.sampler import DefaultBatchSampler

from e2rank_st.storage import text_id

__all__ = ["SourceBatchSampler"]

logger = logging.getLogger(__name__)


class SourceBatchSampler(DefaultBatchSampler):
    """Yields batches of row numbers, each of one source, in an order that depends on seed and epoch only.

    With W processes, W batches in a row are of one source, and together are what one process would get as a batch W
    times as large. The larger a source, the more batches it gives.

    Args:
        dataset: A data set, or several joined in a ``ConcatDataset``: the sources.
        batch_size: Rows in the batch of one process.
        drop_last: Whether to drop the rows of a source that do not fill a batch of all processes. With several
            processes they are always dropped.
        seed: Seed of all epochs.
        processes: W.

    Raises:
        ValueError: No source fills a batch.
    """

    def __init__(self, dataset: Sized, batch_size: int, drop_last: bool, seed: int = 0, processes: int = 1) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last or processes > 1, seed=seed)
        self.sizes = [len(part) for part in getattr(dataset, "datasets", [dataset])]
        self.processes = processes
        self.group = batch_size * processes
        lost = [index for index, size in enumerate(self.sizes) if size < self.group]
        if self.drop_last and lost:
            message = (
                f"{len(lost)} of {len(self.sizes)} sources have fewer rows than the batch of all processes, "
                f"{self.group}: numbers {lost}"
            )
            if len(lost) == len(self.sizes):
                raise ValueError(f"{message}. Nothing is left to train on; give smaller batches.")
            logger.warning("%s. They are left out; join them, or give smaller batches.", message)

    def __len__(self) -> int:
        """Batches of all processes in an epoch."""
        return sum(-(-stop // self.batch_size) - start // self.batch_size for _, start, stop in self._groups())

    def _groups(self) -> Iterator[tuple[int, int, int]]:
        """Source, first and last row (excluded) of each step's batches, counted in the source's own order."""
        for source, size in enumerate(self.sizes):
            end = size - size % self.group if self.drop_last else size
            for start in range(0, end, self.group):
                yield source, start, min(start + self.group, size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of an epoch."""
        orders = [torch.randperm(size, generator=self._generator(source + 1)) for source, size in enumerate(self.sizes)]
        offsets = [sum(self.sizes[:source]) for source in range(len(self.sizes))]
        groups = list(self._groups())
        for index in torch.randperm(len(groups), generator=self._generator(0)).tolist():
            source, start, stop = groups[index]
            rows = (orders[source][start:stop] + offsets[source]).tolist()
            for first in range(0, len(rows), self.batch_size):
                yield rows[first : first + self.batch_size]

    def _generator(self, stream: int) -> torch.Generator:
        # One for each source: cutting one source into batches must not change the order of another.
        return torch.Generator().manual_seed(text_id(f"{self.seed} {self.epoch} {stream}"))
