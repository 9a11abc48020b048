"""The data folder → the slates that the bundled model is trained on, one parquet file a source.

    python models/make_slates.py --data ../shared/data --output build/slates

Questions get the passages that the untrained base finds nearest, so that a prompt made from a slate looks like one made
from a first stage's results. Graded lists and a strong first stage's results are few and long: each is dealt out into
several slates, so that prompts of one question differ.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from e2rank_st import E2Rank
from e2rank_st.collection import Collection
from e2rank_st.mining import MiningSettings, mine
from e2rank_st.readers import read_beir, read_results
from e2rank_st.slates import Manifest, Slate, write_slates

logger = logging.getLogger("make_slates")

BASE = "sentence-transformers/all-MiniLM-L6-v2"
TITLED = "Questions with one gold passage, or short judged lists: candidates come from the whole corpus."


@dataclass(frozen=True)
class Mined:
    """Questions whose candidates are mined.

    Attributes:
        name: Folder of the data.
        queries: How many are drawn.
        settings: How candidates are chosen. Those of judged lists are unjudged, not negatives.
    """

    name: str
    queries: int
    settings: MiningSettings


@dataclass(frozen=True)
class Dealt:
    """Long lists that are dealt out.

    Attributes:
        name: Folder with judgements, or first-stage results of ``{name}_splade`` and ``{name}_bm25``.
        slates: How many are made of each list.
        size: Documents in each.
    """

    name: str
    slates: int
    size: int


ONE_GOLD = MiningSettings(num_candidates=39, max_positive_similarity=0.95, unjudged=False)
JUDGED = MiningSettings(num_candidates=30, max_positive_similarity=0.95, unjudged=True)
MINED = (
    Mined("squad", 12_000, ONE_GOLD),
    Mined("medquad", 9_000, ONE_GOLD),
    Mined("wikiqa", 873, JUDGED),
    Mined("mediqa", 208, JUDGED),
)
DEALT = (Dealt("dl22", 40, 60), Dealt("dl23", 40, 60))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the slates of every source that is not there yet."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.output.mkdir(parents=True, exist_ok=True)
    model = None
    for source in MINED:
        path = options.output / f"{source.name}.parquet"
        if not path.exists():
            model = model or E2Rank.from_bundled(trained=False, model_kwargs={"dtype": "bfloat16"})
            slates = _mined(source, model, options)
            _write(path, slates, Manifest(source.name, BASE, options.seed, _described(source)))
    for dealt in DEALT:
        path = options.output / f"{dealt.name}.parquet"
        if not path.exists():
            lists = _lists(dealt, options.data)
            slates = (part for slate in lists for part in deal(slate, dealt, options.seed))
            _write(path, slates, Manifest(dealt.name, None, options.seed, _described(dealt)))


def deal(slate: Slate, into: Dealt, seed: int) -> Iterator[Slate]:
    """Deal a long list out into slates of randomly drawn documents; a list that is short enough stays as it is."""
    if len(slate) <= into.size:
        yield slate
        return
    draw = random.Random(f"{seed}\n{slate.query}")
    for _ in range(into.slates):
        places = sorted(draw.sample(range(len(slate)), into.size))
        parts = ([values[place] for place in places] for values in (slate.documents, slate.labels, slate.gold))
        yield Slate(slate.query, *map(tuple, parts), slate.source)


def _mined(source: Mined, model: E2Rank, options: argparse.Namespace) -> Iterator[Slate]:
    collection = Collection.load(options.data / source.name, "train")
    queries = list(collection.judgements)
    drawn = sorted(random.Random(options.seed).sample(range(len(queries)), min(source.queries, len(queries))))
    judgements = {queries[place]: collection.judgements[queries[place]] for place in drawn}
    return mine(
        model, replace(collection, judgements=judgements), replace(source.settings, seed=options.seed),
        source=source.name, parts=options.output / "parts" / source.name, batch_size=64, show_progress_bar=True,
    )  # fmt: skip


def _lists(source: Dealt, data: Path) -> Iterator[Slate]:
    """Graded lists, or a strong first stage's order with the passages of a weak one behind it."""
    if (data / source.name).is_dir():
        yield from read_beir(data / source.name, gold_from=2)
        return
    strong, weak = (data / "rerank" / f"{source.name}_{kind}_top100.jsonl.gz" for kind in ("splade", "bm25"))
    others = {slate.query: slate.documents for slate in read_results(weak)}
    for slate in read_results(strong):
        rest = [text for text in dict.fromkeys(others.get(slate.query, ())) if text not in slate.documents]
        labels = (*(label + 1 for label in slate.labels if label is not None), *(0.0 for _ in rest))
        yield Slate(slate.query, (*slate.documents, *rest), labels, source=source.name).distinct()


def _described(source: Mined | Dealt) -> dict[str, object]:
    return json.loads(json.dumps(asdict(source)))


def _write(path: Path, slates: Iterator[Slate], manifest: Manifest) -> None:
    written = write_slates(path, slates, manifest)
    logger.info("%s: %s slates, %s documents", path.name, written.counts["slates"], written.counts["documents"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("build/slates"), help="where slates go [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn [%(default)s]")
    return parser


if __name__ == "__main__":
    main()
