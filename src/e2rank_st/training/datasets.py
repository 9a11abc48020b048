"""The data that settings name → data sets to train on, evaluators, and an account of where the data came from."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.evaluation import SequentialEvaluator
from torch import nn

from e2rank_st.data.files import DataError, json_row
from e2rank_st.data.formats import open_slates, read_beir, read_columns, read_rankings, read_results
from e2rank_st.data.slates import Slate, read_manifest, read_slates
from e2rank_st.evaluation.evaluator import RerankingEvaluator
from e2rank_st.model import E2Rank
from e2rank_st.provenance import model_digest
from e2rank_st.search.kept import Kind, kept_vectors
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct
from e2rank_st.storage import file_sha256, folder_sha256, read_json, write_json
from e2rank_st.training.collator import prompt_orders
from e2rank_st.training.labels import Lessons
from e2rank_st.training.losses import LossOptions

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

__all__ = ["DataEntry", "fingerprint", "frozen_vectors", "load_evaluator", "load_training_data", "with_prompt_orders"]

logger = logging.getLogger(__name__)

OWN = ("path", "name", "limit", "depth", "own_first_stage")
NEEDED = {  # in a slate, by the part of the loss
    "contrastive": "a positive (a gold document, a single label or two different ones)",
    "listwise": "two different labels",
    "localized": "a gold document beside a different one",
}
READERS = (read_beir, read_columns, read_rankings, read_results, read_slates)


@dataclass(frozen=True)
class DataEntry:
    """One entry of the settings ``train`` or ``dev``.

    Attributes:
        path: File or folder.
        name: Name of the data set, instead of the one in the file or of the file.
        limit: Number of slates to draw; all by default.
        depth: Number of documents to take from the start of each slate. A mined slate begins with those that are
            judged; the nearest follow. The log says how many gold documents are left out.
        own_first_stage: Whether an evaluator sorts the candidates by the model first. By default it does, unless they
            are a first stage's results.
        options: Those of the reader, see :func:`~e2rank_st.data.formats.open_slates`.
    """

    path: str
    name: str | None = None
    limit: int | None = None
    depth: int | None = None
    own_first_stage: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> DataEntry:
        """Read an entry: a path, or a JSON object with ``path`` and any of the other fields and reader options.

        Raises:
            ValueError: The object lacks a path, or has an unknown field.
        """
        if not text.lstrip().startswith("{"):
            return cls(text)
        try:
            values = dict(json_row(text.encode(errors="surrogateescape")))
        except DataError as error:
            raise error.at(f"the data {text:.200}") from error.__cause__
        options = sorted({name for reader in READERS for name in list(inspect.signature(reader).parameters)[1:]})
        for name in values:
            if name not in OWN and name not in options:
                nearest = difflib.get_close_matches(name, [*OWN, *options], n=1, cutoff=0.0)[0]
                raise ValueError(f"Unknown field {name!r} in the data {text}; did you mean {nearest!r}?")
        if not isinstance(values.get("path"), str):
            raise ValueError(f"The data {text} has no path; name a file or folder.")
        own = {name: values.pop(name) for name in OWN if name in values}
        return cls(**own, options=values)

    def slates(self, seed: int) -> list[Slate]:
        """Read the slates; of more than ``limit`` as many are drawn, and stay in their order.

        Raises:
            ValueError: The file has no slates, ``depth`` is below 1, or the reader refuses the file.
            TypeError: The file's reader has no such option.
            OSError: The file cannot be read.
        """
        options = dict(self.options) | ({} if self.name is None else {"source": self.name})
        slates = list(open_slates(self.path, **options))
        if self.depth is not None:
            known = sum(sum(slate.gold) for slate in slates)
            slates = [slate.first(self.depth) for slate in slates]
            if lost := known - sum(sum(slate.gold) for slate in slates):
                logger.warning("%s: depth %d leaves out %d of %d gold documents.", self.path, self.depth, lost, known)
        if not slates:
            raise ValueError(f"{self.path} holds no slates.")
        return [slates[place] for place in self.chosen(len(slates), seed)]

    def chosen(self, total: int, seed: int) -> list[int]:
        """Draw the places of the slates that are taken, ascending."""
        return sorted(random.Random(seed).sample(range(total), min(total if self.limit is None else self.limit, total)))

    def describe(self, slates: Iterable[Slate]) -> dict[str, Any]:
        """Say where slates come from: the entry, counts, the hash of the file, and its manifest where it has one."""
        slates, path = list(slates), Path(self.path)
        digest = file_sha256(path) if path.is_file() else folder_sha256(path)
        record = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        record |= {"slates": len(slates), "documents": sum(map(len, slates)), "sha256": digest}
        try:
            manifest = read_manifest(self.path)
        except FileNotFoundError:
            return record
        return record | {"manifest": {name: value for name, value in asdict(manifest).items() if value}}


def load_training_data(
    entries: Iterable[str], seed: int = 0, skip_bad_rows: bool = False, loss: LossOptions | None = None
) -> tuple[DatasetDict, list[dict[str, Any]]]:
    """Read what to train on.

    Args:
        entries: See :meth:`DataEntry.parse`.
        seed: Seed of the draws.
        skip_bad_rows: Leave out bad rows and log their number, instead of refusing the file.
        loss: The loss that the slates have to teach something; by default that of stage II.

    Returns:
        A data set for each name of a source, with the columns ``query, documents, labels, gold``; and an account of
        each entry. A document that a slate holds twice is there once.

    Raises:
        ValueError: An entry is wrong, or its file is, or no slate of a file teaches the loss anything, or no slate of
            all teaches one of its parts.
        OSError: A file cannot be read.
        ImportError: The package ``datasets`` is missing.
    """
    try:
        from datasets import DatasetDict
    except ImportError as error:
        raise ImportError("Training needs more packages: pip install 'e2rank-st[train]'") from error
    by_name: dict[str, list[Slate]] = {}
    records = []
    taught = Counter[str]()
    for source in map(DataEntry.parse, entries):
        if skip_bad_rows:
            source = replace(source, options={"skip_bad_rows": True, **source.options})
        slates = source.slates(seed)
        records.append(source.describe(slates))
        slates = [slate.distinct() for slate in slates]
        taught += _lessons(source.path, slates, loss or LossOptions())
        for slate in slates:
            by_name.setdefault(slate.source or Path(source.path).name.split(".")[0], []).append(slate)
    for part, weight in (loss or LossOptions()).weights.items():
        if records and not taught[part]:
            raise ValueError(
                f"Got {part}_weight={weight:g}, and none of the slates has {NEEDED[part]}. That loss would be 0: give "
                f"data with labels for it, or {part}_weight 0."
            )
    return DatasetDict({name: _dataset(slates) for name, slates in sorted(by_name.items())}), records


def _lessons(path: str, slates: list[Slate], loss: LossOptions) -> Counter[str]:
    """Count the slates that teach each part of the loss; refuse a file without any, and tell how many have nothing."""
    parts = list(loss.weights)
    lessons = [Lessons.of(slate.labels, slate.gold) for slate in slates]
    taught = Counter(part for lesson in lessons for part in parts if getattr(lesson, part))
    useless = sum(not any(getattr(lesson, part) for part in parts) for lesson in lessons)
    wanted = ", or ".join(NEEDED[part] for part in parts)
    if useless == len(slates):
        raise ValueError(
            f"{path} teaches nothing: none of its {useless} slates has {wanted}. The loss would be 0; give it labels."
        )
    if useless:
        share = f"{useless} of {len(slates)} slates ({useless / len(slates):.1%})"
        logger.warning("%s: %s teach nothing, because they lack %s.", path, share, wanted)
    return taught


def _dataset(slates: list[Slate]) -> Dataset:
    from datasets import Dataset, Features, List, Value

    features = Features(
        {
            "query": Value("string"),
            "documents": List(Value("string")),
            "labels": List(Value("float64")),
            "gold": List(Value("bool")),
        }
    )
    columns = {name: [getattr(slate, name) for slate in slates] for name in features}
    return Dataset.from_dict(columns, features=features)


def load_evaluator(entries: Iterable[str], seed: int = 0) -> tuple[SequentialEvaluator | None, list[dict[str, Any]]]:
    """Read what to evaluate on.

    Args:
        entries: See :meth:`DataEntry.parse`.
        seed: Seed of the draws.

    Returns:
        An evaluator for all entries, or None without an entry; and an account of each. The evaluator's
        ``sequential_score`` is the mean of their listwise nDCG@10.

    Raises:
        ValueError: An entry is wrong, or its file is, or two have one name.
        OSError: A file cannot be read.
    """
    evaluators: list[RerankingEvaluator] = []
    records = []
    for source in map(DataEntry.parse, entries):
        name = source.name or Path(source.path).resolve().name.split(".")[0]
        if name in [evaluator.name for evaluator in evaluators]:
            raise ValueError(f"Two sets to evaluate on are called {name!r}; give one of them a 'name'.")
        whole = replace(source, limit=None).slates(seed)
        places = source.chosen(len(whole), seed)
        slates = [whole[place] for place in places]
        evaluators.append(_evaluator(source, slates, places, name))
        records.append(source.describe(slates))
    if not evaluators:
        return None, records
    return SequentialEvaluator(evaluators, main_score_function=lambda scores: sum(scores) / len(scores)), records


def _evaluator(source: DataEntry, slates: list[Slate], places: list[int], name: str) -> RerankingEvaluator:
    qrels = source.options.get("qrels")
    own = qrels is None if source.own_first_stage is None else source.own_first_stage
    if qrels is None:
        return RerankingEvaluator.from_slates(slates, own_first_stage=own, name=name)
    if source.options.get("skip_bad_rows"):
        raise ValueError(
            f"{source.path} is evaluated with judgements, row by row; mend its bad rows, or leave them out."
        )
    if source.depth is not None:
        raise ValueError(f"{source.path} is evaluated as it was retrieved; leave depth={source.depth} out.")
    # Not from the slates: the judgements also count documents that the run has not found.
    return RerankingEvaluator.from_results(source.path, qrels, places=places, own_first_stage=own, name=name)


def frozen_vectors(
    model: E2Rank,
    data: DatasetDict,
    column: Kind,
    folder: Path,
    precision: str = "",
    show_progress_bar: bool | None = None,
) -> TextVectors:
    """Embed every distinct document or query of the data with the model as it is.

    The vectors of each source are kept on disk, for other processes, for a run that is resumed and for other runs with
    the same model and texts.

    Args:
        model: The model before training.
        data: What :func:`load_training_data` gives.
        column: Whose texts.
        folder: Where to keep the vectors.
        precision: Name of the precision of the forward passes, if it is not that of the weights.
        show_progress_bar: Whether to show a progress bar; by default if the package's log level is INFO or lower.
    """
    options: Any = {"precision": precision, "show_progress_bar": show_progress_bar}
    parts = []
    for name, part in data.items():
        texts = distinct(part["documents"] if column == "documents" else [part["query"]])
        parts.append(kept_vectors(model, texts, folder, column, name=name, **options))
    return TextVectors(
        [text for part in parts for text in part.texts], np.concatenate([part.embeddings for part in parts])
    )


def with_prompt_orders(
    model: E2Rank,
    data: DatasetDict,
    cache: Path,
    index: TextVectors | None = None,
    query_index: TextVectors | None = None,
    show_progress_bar: bool | None = None,
) -> DatasetDict:
    """Add the column ``prompt_order``: the documents in the order in which the model's prompts take them.

    Args:
        model: The model before training.
        data: What :func:`load_training_data` gives.
        cache: File to keep the orders in, for other processes and for a run that is resumed.
        index: The documents with their vectors; by default they are embedded here.
        query_index: The queries with theirs; likewise.
        show_progress_bar: Whether to show progress bars; by default if the package's log level is INFO or lower.
    """
    if model.listwise.candidate_order == "given":
        return data
    key = fingerprint(model, data)
    kept = read_json(cache) if cache.exists() else {}
    if kept.get("key") != key:
        orders = {
            name: prompt_orders(
                model, list(part["query"]), list(part["documents"]), index, query_index, show_progress_bar
            )
            for name, part in data.items()
        }
        kept = {"key": key, "orders": orders}
        write_json(cache, kept, indent=None)
    for name, part in data.items():
        data[name] = part.add_column("prompt_order", kept["orders"][name])
    return data


def fingerprint(model: nn.Module, data: Mapping[str, Any]) -> str:
    """Hash what the order of documents depends on: their texts, and the model's weights and prompts."""
    digest = model_digest(model)
    for name, part in data.items():
        digest.update(name.encode())
        for row in part:
            digest.update(json.dumps([row["query"], row["documents"]]).encode())
    return str(digest.hexdigest())
