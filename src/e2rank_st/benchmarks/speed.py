"""Models and candidates → the time of each way to rank them, as a ratio to a cross-encoder, and beside the floor.

Everything happens in one process. The ways take turns on the same candidates, so that a machine whose speed drifts
treats all alike; ratios are made within a turn. Quality is not measured here: decoders have weights that are drawn.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers.utils.logging import tqdm

from e2rank_st.benchmarks.meter import Meter, memory_in_use, product_rate, synchronize
from e2rank_st.benchmarks.peers import (
    SHAPES,
    Generative,
    cross_encoder,
    plain_recipe,
    quiet,
    recipe_fits,
    write_random_decoder,
)
from e2rank_st.bundled import BUNDLED, base_here
from e2rank_st.console import markdown_table
from e2rank_st.data.docstrings import QUERIES, collect
from e2rank_st.data.formats import read_results
from e2rank_st.loading import load_model
from e2rank_st.model import E2Rank
from e2rank_st.provenance import environment
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import distinct

__all__ = ["REFERENCE", "WORKS", "Line", "Work", "measure", "short_table", "tables", "works"]

REFERENCE = "CrossEncoder.rank"  # its time over that of a way is the way's ratio
STORED = "rerank, stored vectors, K = {k}"
SHORT = ("rerank", "encode", REFERENCE)  # lines of the short table, behind the first
WORKS = {"short": 1, "medium": 2, "long": 5}  # passages that a document is made of
NUM_CANDIDATES, MANY = 100, 32
WORDS = 55  # of a docstring that stands for a passage: about 75 tokens
AT_LEAST = 0.2  # seconds; a quick way is repeated in its turn
LARGE_K = 20


class Work(NamedTuple):
    """What is ranked in a turn.

    Attributes:
        query: The query.
        documents: N candidates.
    """

    query: str
    documents: list[str]


@dataclass(frozen=True)
class Line:
    """The time of one way to rank.

    Attributes:
        model: The backbone.
        work: Length of the documents, a name of :data:`WORKS`.
        dtype: Type of the weights.
        way: What was done.
        milliseconds: For a query: the median of the turns.
        least: The shortest turn.
        most: The longest turn.
        ratio: How many times faster than the cross-encoder, whose type is ``reference_dtype`` of the results.
        tokens: That went through the model for a query, without padding.
        floor: Milliseconds that the needed operations take at the rate of a matrix product.
        outside: Share of the time that was not spent in the model: tokenising, prompts, sorting, Python.
        peak_bytes: Most memory beyond the weights; None where the device does not tell.
    """

    model: str
    work: str
    dtype: str
    way: str
    milliseconds: float
    least: float
    most: float
    ratio: float
    tokens: int
    floor: float
    outside: float
    peak_bytes: int | None

    @property
    def of_floor(self) -> float:
        """Share of the machine's rate that is reached."""
        return self.floor / self.milliseconds


@dataclass
class _Way:
    """One way to rank, with what its turns took."""

    dtype: torch.dtype
    name: str
    run: Callable[[Work], object]
    meter: Meter
    queries: int = 1
    prepare: Callable[[Work], object] = lambda _: None  # before the time counts
    fits: Callable[[Work], bool] = lambda _: True  # into memory
    seconds: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    peak: int | None = None


def works(results: Path | None, size: int, turns: int) -> list[Work]:
    """Read or make queries with candidates.

    Args:
        results: First-stage results with text, JSON lines; by default, docstrings of the standard library. A passage
            that comes twice counts once; the next query's passages fill up.
        size: Passages that a document is made of: candidates that follow each other.
        turns: Number of queries; they come again where there are fewer.

    Raises:
        ValueError: There are no queries, or one has no candidates.
    """
    if results is None:
        texts = [" ".join(part.document.split()[:WORDS]) for part in collect()]
        texts = [text for text in texts if len(text.split()) > WORDS // 2]
        draw = np.random.default_rng(0)
        found = [(query, list(draw.choice(texts, NUM_CANDIDATES, replace=False))) for query in QUERIES]
    else:
        slates = list(islice(read_results(results), turns + 1))
        found = [
            (slate.query, distinct([slate.documents, following.documents])[: min(len(slate.documents), NUM_CANDIDATES)])
            for slate, following in zip(slates, [*slates[1:], *slates[:1]], strict=True)
        ]
    if not found:
        raise ValueError(f"{results} holds no queries; give at least one with its candidates.")
    made = []
    for query, parts in found:
        around = parts + parts  # the last candidates are followed by the first
        made.append(Work(query, [" ".join(around[row : row + size]) for row in range(len(parts))]))
    return [made[turn % len(made)] for turn in range(turns)]


def measure(
    names: Sequence[str],
    given: Mapping[str, Sequence[Work]],
    dtypes: Sequence[str],
    *,
    device: str | None = None,
    tokenizer: str = "Qwen/Qwen3-0.6B",
    show_progress_bar: bool = False,
) -> dict[str, Any]:
    """Time every way to rank, for each model, work and type of the weights.

    Args:
        names: Bundled models, or shapes of decoders, see :data:`~e2rank_st.benchmarks.peers.SHAPES`.
        given: For each length of documents, the queries of the turns. The first is a warm-up that is not counted.
        dtypes: Types of the weights.
        device: Where to compute; by default the best device.
        tokenizer: Tokenizer of the decoders: folder or Hub id.
        show_progress_bar: Whether to show a bar of the turns.

    Returns:
        ``environment``, ``reference_dtype`` (that of the cross-encoder that is compared with) and ``lines``, as JSON
        can hold them. A way that would not fit into memory is left out.

    Raises:
        ValueError: A name is not one of those.
    """
    lines: list[Line] = []
    rates: dict[str, float] = {}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    reference = dtypes[0] if "float32" not in dtypes else "float32"
    with tempfile.TemporaryDirectory() as scratch:
        with quiet():
            folders = {name: _backbone(name, tokenizer, Path(scratch)) for name in names}  # before anything takes time
        for name, folder in folders.items():
            with quiet():
                loaded = name if name in BUNDLED else folder
                models = {dtype: load_model(loaded, device=device, dtype=dtype) for dtype in dtypes}
                ways = [way for dtype, model in models.items() for way in _ways(model, folder, dtype, name in SHAPES)]
            for work, queries in given.items():
                bar = tqdm(queries, desc=f"{name}, {work}", unit="turn", disable=not show_progress_bar)
                fitting = [way for way in ways if all(map(way.fits, queries))]
                lines += _turns(name, work, bar, fitting, models[dtypes[0]].device, rates, reference)
    place = next(iter(models.values())).device
    return {
        "environment": environment(place) | {"load_average": load, "dtype_rates": rates},
        "candidates": NUM_CANDIDATES,
        "reference_dtype": reference,
        "lines": [asdict(line) for line in lines],
    }


def _backbone(name: str, tokenizer: str, scratch: Path) -> str:
    """The folder of a backbone that a cross-encoder can be made of."""
    if name in BUNDLED:
        return base_here(BUNDLED[name].base)
    if name not in SHAPES:
        raise ValueError(f"Got the model {name!r}; give one of {', '.join(map(repr, [*BUNDLED, *SHAPES]))}.")
    return str(write_random_decoder(name, tokenizer, scratch / name))


def _ways(model: E2Rank, folder: str, dtype: str, is_decoder: bool) -> Iterator[_Way]:
    """The ways to rank with a model and its peers. Stored vectors are made before the time counts."""
    weights, listwise = getattr(torch, dtype), model.listwise
    parts: Any = (model, listwise.prompt_model)
    own = Meter([*(next(part.children()) for part in parts), cast("nn.Module", model.transformers_model)])
    quiet: dict[str, Any] = {"show_progress_bar": False}
    stored: dict[int, TextVectors] = {}

    def keep(work: Work) -> None:
        if id(work) not in stored:
            stored.clear()
            stored[id(work)] = TextVectors.build(model, work.documents, **quiet)

    def with_vectors(work: Work, **options: Any) -> object:
        vectors = stored[id(work)].embeddings
        return model.rerank(work.query, work.documents, document_embeddings=vectors, **quiet, **options)

    def by_text(work: Work) -> object:
        vectors = stored[id(work)].vectors(work.documents)
        return model.rerank(work.query, work.documents, document_embeddings=vectors, **quiet)

    def together(work: Work, **options: Any) -> object:
        queries = [f"{work.query} {number}" for number in range(MANY)]
        return model.rerank(queries, work.documents, **quiet, **options)

    def together_with_vectors(work: Work) -> object:
        return together(work, document_embeddings=stored[id(work)].embeddings)

    for number in dict.fromkeys((listwise.num_prompt_documents, LARGE_K)):
        ranked = partial(with_vectors, num_prompt_documents=number)
        yield _Way(weights, STORED.format(k=number), ranked, own, prepare=keep)
    yield _Way(weights, f"rerank, stored vectors, {MANY} queries", together_with_vectors, own, MANY, keep)
    yield _Way(weights, "rerank, vectors found by text", by_text, own, prepare=keep)
    yield _Way(weights, "rerank", lambda work: model.rerank(*work, **quiet), own)
    yield _Way(weights, f"rerank, {MANY} queries, same candidates", together, own, MANY)
    yield _Way(weights, "encode", lambda work: model.encode_document(work.documents, **quiet), own)
    yield _Way(
        weights,
        "recipe of the model card",
        lambda work: plain_recipe(model, *work),
        own,
        fits=lambda work: recipe_fits(model, *work),
    )
    cross = cross_encoder(folder, model, weights)
    yield _Way(weights, REFERENCE, lambda work: cross.rank(*work, **quiet), Meter([next(cross.children())]))
    if is_decoder:
        writer = Generative(folder, model.device, weights, model.max_seq_length)
        yield _Way(weights, "generative listwise", lambda work: writer.rank(*work), Meter([writer.model]))


def _turns(
    name: str,
    work: str,
    queries: Iterable[Work],
    ways: Sequence[_Way],
    device: torch.device,
    rates: dict[str, float],
    reference: str,
) -> Iterator[Line]:
    """Let the ways take turns; the first turn is not counted, and tells the memory."""
    for way in ways:
        way.seconds, way.inside, way.flops, way.tokens, way.peak = [], [], [], [], None
    found: dict[torch.dtype, list[float]] = {way.dtype: [] for way in ways}
    for turn, query in enumerate(queries):
        for dtype, of_dtype in found.items():
            of_dtype.append(product_rate(device, dtype))
        for way in ways:
            _take(way, query, device, counts=turn > 0)
    best = {dtype: max(of_dtype) for dtype, of_dtype in found.items()}
    for dtype, rate in best.items():
        key = str(dtype).removeprefix("torch.")
        rates[key] = max(rate, rates.get(key, 0.0))
    theirs = next(way.seconds for way in ways if way.name == REFERENCE and way.dtype == getattr(torch, reference))
    return (_line(name, work, way, best[way.dtype], theirs) for way in ways)


def _take(way: _Way, query: Work, device: torch.device, *, counts: bool) -> None:
    """Rank once, or again until enough time has passed to be measured; uncounted, once more for the memory."""
    way.prepare(query)
    with way.meter as meter:
        meter.clear()
        calls, start = 0, time.perf_counter()
        while True:
            way.run(query)
            synchronize(device)
            calls += 1
            seconds = time.perf_counter() - start
            if seconds >= AT_LEAST:
                break
    if counts:
        way.seconds.append(seconds / calls / way.queries)
        way.inside.append(meter.seconds / seconds)
        way.flops.append(meter.flops / calls / way.queries)
        way.tokens.append(meter.tokens / calls / way.queries)
    elif (before := memory_in_use(device)) is not None:
        way.run(query)
        way.peak = cast("int", memory_in_use(device, peak=True)) - before


def _line(name: str, work: str, way: _Way, rate: float, theirs: Sequence[float]) -> Line:
    median = statistics.median(way.seconds)
    ratios = [reference / ours for reference, ours in zip(theirs, way.seconds, strict=True)]
    return Line(
        model=name,
        work=work,
        dtype=str(way.dtype).removeprefix("torch."),
        way=way.name,
        milliseconds=round(1000 * median, 2),
        least=round(1000 * min(way.seconds), 2),
        most=round(1000 * max(way.seconds), 2),
        ratio=round(statistics.median(ratios), 2),
        tokens=round(statistics.median(way.tokens)),
        floor=round(1000 * statistics.median(way.flops) / rate, 2),
        outside=round(1 - statistics.median(way.inside), 3),
        peak_bytes=way.peak,
    )


def short_table(found: Mapping[str, Any]) -> str:
    """Write what a user pays with stored vectors and without, and what the alternatives take: short documents only."""
    lines = [Line(**line) for line in found["lines"] if line["work"] == "short"]
    chosen = [line for line in lines if line.way in SHORT or line.way == STORED.format(k=_k(lines, line.model))]
    rows = [
        (
            line.model,
            line.dtype,
            line.way,
            f"{line.milliseconds:,.0f}",
            f"{line.ratio:,.1f}",
        )
        for line in chosen
    ]
    table = markdown_table(("model", "type", "", "ms a query", _reference(found)), rows, labels=3)
    return f"{table}\n\n{_machine(found)}\n"


def _reference(found: Mapping[str, Any]) -> str:
    return f"× CrossEncoder, {found['reference_dtype']}"


def _machine(found: Mapping[str, Any]) -> str:
    about = found["environment"]
    load = "" if about["load_average"] is None else f", load {about['load_average']:.1f} before"
    return f"{about['hardware']['device']}, {about['hardware']['threads']} threads{load}."


def _k(lines: Sequence[Line], model: str) -> str:
    """The number of documents in a model's own prompt: its first line has it."""
    return next(line.way for line in lines if line.model == model).rpartition(" ")[2]


def tables(found: Mapping[str, Any]) -> str:
    """Write what :func:`measure` found as tables in Markdown, one for each model and work."""
    header = (
        "", "type", "ms a query", "from, to", _reference(found), "of the floor", "outside", "tokens", "memory, MB"
    )  # fmt: skip
    lines = [Line(**line) for line in found["lines"]]
    parts = [f"{_machine(found)}\n"]
    for model, work in dict.fromkeys((line.model, line.work) for line in lines):
        rows = [
            (
                line.way, line.dtype, f"{line.milliseconds:,.1f}", f"{line.least:,.1f}, {line.most:,.1f}",
                f"{line.ratio:,.2f}", f"{line.of_floor:.0%}", f"{line.outside:.0%}",
                f"{line.tokens:,}", "" if line.peak_bytes is None else f"{line.peak_bytes / 1e6:,.0f}",
            )
            for line in lines
            if (line.model, line.work) == (model, work)
        ]  # fmt: skip
        parts += [f"\n`{model}`, {work} documents:\n\n", markdown_table(header, rows, labels=2) + "\n"]
    return "".join(parts)
