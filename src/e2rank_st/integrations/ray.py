"""Files of documents → an index, by many workers of Ray Data: on one machine, or on a cluster.

Each worker loads the model once, and adds one batch of documents at a time to the same index. To add a batch twice
changes nothing, so Ray may repeat one whose worker died, and a run that was stopped is started again as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2rank_st.search.index import Changes, SearchIndex

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise ImportError("Workers need Ray: pip install 'e2rank-st[ray]'") from error

__all__ = ["READERS", "add_with_ray"]

logger = logging.getLogger(__name__)

READERS = {
    ".parquet": "read_parquet",
    ".jsonl": "read_json",
    ".jsonl.gz": "read_json",
    ".json": "read_json",
    ".csv": "read_csv",
    ".lance": "read_lance",
}


class _Worker:
    """Adds batches to an index."""

    def __init__(self, path: str, load: Callable[[], Any], batch_size: int) -> None:
        self.index = SearchIndex.open(path, load())
        self.batch_size = batch_size

    def __call__(self, batch: Any) -> dict[str, list[int]]:
        changes = self.index.add(batch, batch_size=self.batch_size, show_progress_bar=False, optimize=False)
        return {name: [number] for name, number in changes._asdict().items()}


def add_with_ray(
    path: str,
    load: Callable[[], Any],
    documents: Any,
    *,
    workers: int = 2,
    gpus: float = 0,
    batch_size: int = 32,
    documents_per_write: int = 4096,
) -> Changes:
    """Add documents to an index with several workers. Ray is started on this machine, unless it is connected already.

    Args:
        path: The index, which exists; all workers must reach the path. On a cluster, give an object store's address.
        load: Loads the model that made the index, in each worker.
        documents: A data set of Ray, or the path of files with ``text``: parquet, JSON lines, CSV or Lance.
        workers: Number of workers; each has a copy of the model.
        gpus: GPUs of a worker.
        batch_size: Texts in a forward pass.
        documents_per_write: Documents that a worker adds at a time. A write makes a version of the index, so many
            workers need large writes.

    Returns:
        How many documents were embedded, rewritten, or there already.

    Raises:
        ValueError: The ending of the path is unknown.
        OSError: The index cannot be read.
    """
    index = SearchIndex.open(path)
    given = _read(documents) if isinstance(documents, (str, Path)) else documents
    done = given.map_batches(
        _Worker,
        fn_constructor_args=(path, load, batch_size),
        batch_size=documents_per_write,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0.5,  # the rest reads files; a worker takes what it needs all the same
        num_gpus=gpus or None,
    )
    changes = Changes()
    for row in done.iter_rows():
        changes = Changes(*(total + row[name] for name, total in changes._asdict().items()))
    index.optimize()
    return changes


def _read(path: str | Path) -> Any:
    for ending, reader in READERS.items():
        if str(path).endswith(ending) or any(Path(path).glob(f"*{ending}")):
            return getattr(ray.data, reader)(str(path))
    raise ValueError(f"The form of {path} is unknown; its files must end in {', '.join(READERS)}.")
