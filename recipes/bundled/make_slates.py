"""The data folder → slates to train the bundled models and to choose them.

    python recipes/bundled/make_slates.py --data ../shared/data --output build/slates

Questions and claims get the passages that the untrained MiniLM finds nearest, so a slate's prompt looks like a first
stage's prompt. Known answers are gold, and the rest is unjudged. All models train on the same slates. About a third of
them have a claim as the query. Graded lists and a strong teacher's order teach preferences. These lists are few and
long. Each is dealt out into several slates, because prompts of one question should differ.

A training run embeds every distinct document of its slates once. So sources are drawn smaller than they are. Documents
and queries of the evaluation sets are left out by their text. data.md describes the sources of the data.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from e2rank_st import E2Rank
from e2rank_st.console import log_to_stderr, reported_errors
from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.formats import read_beir, read_results
from e2rank_st.data.slates import Manifest, Slate, write_slates
from e2rank_st.labelling.drawing import cut, deal, draw_part, thin, with_claims, with_siblings, without
from e2rank_st.labelling.heldout import HeldOut
from e2rank_st.labelling.mining import MiningSettings, mine
from e2rank_st.labelling.retrieval import write_first_stage

logger = logging.getLogger("e2rank_st.recipe")

BASE = "sentence-transformers/all-MiniLM-L6-v2"
CANDIDATES = MiningSettings(max_positive_similarity=0.98, unjudged=True)
MOST_GOLD = 8  # in a slate; a question of bioasq has up to 60 answers


@dataclass(frozen=True)
class Mined:
    """Queries with mined candidates.

    Attributes:
        name: Folder of the data.
        documents: Least number of documents to mine from; whole groups are drawn until they hold it.
        queries: Number of queries to draw; their answers are among these documents.
        claims: Number of sentences to draw as further queries, from documents that answer none of the queries.
        size: Most documents of a slate.
        gold_from: Least grade of an answer.
        first: Queries that match this regular expression are drawn before the rest.
        only: Documents that do not match this regular expression are left out.
        siblings: Whether other documents of an answer's group may be candidates.
        most_judged: Queries with more judged documents are left out: they are dealt instead.
    """

    name: str
    documents: int
    queries: int
    claims: int = 0
    size: int = 24
    gold_from: float = 1
    first: str | None = None
    only: str | None = None
    siblings: bool = True
    most_judged: int | None = None


@dataclass(frozen=True)
class Dealt:
    """Long lists that are dealt out.

    Attributes:
        name: Name of the slates.
        path: Folder with judgements, or results of a first stage whose order is the label.
        documents: Most documents of a list, drawn from it.
        slates: Number of slates of each list.
        size: Documents in each slate.
        least: Shorter lists are left out.
    """

    name: str
    path: str
    documents: int
    slates: int
    size: int = 30
    least: int = 1


MINED = (
    # Claims and sentences like them.
    # The rest of evidence's queries begin with "Effect of". Claims are about abstracts with a title. Among the
    # other abstracts, a model would learn to look for titles.
    Mined("evidence", 1_000, 2_000, first="^(?!Effect of )", only="^TITLE:"),
    Mined("bioasq", 9_000, 2_000),
    Mined("scitldr", 1_600, 1_300),
    Mined("citations", 1_200, 700, siblings=False),
    Mined("pubmedqa", 700, 900),
    # Questions.
    Mined("squad", 2_000, 1_400, claims=200),
    Mined("medquad", 2_000, 1_000, claims=200),
    Mined("nq", 2_200, 1_400),
    Mined("boolq", 1_500, 900),
    Mined("stackexchange", 1_500, 700),
    Mined("medforum", 1_800, 600),
    Mined("wikiqa", 3_500, 400),
    Mined("covidfaq", 1_000, 500),
    Mined("msmarco_dev", 6_000, 300, size=16, most_judged=1),
    Mined("mediqa", 1_000, 200, gold_from=2),
)
DEALT = (
    Dealt("dl22", "rerank/dl22_fused_teacher.jsonl.gz", documents=60, slates=24),
    Dealt("dl23", "dl23", documents=60, slates=30),
    Dealt("dl23dev", "dl23dev", documents=60, slates=30),
    Dealt("msmarco_graded", "msmarco_dev", documents=20, slates=3, size=12, least=2),
)
SQUAD_DEV = Mined("squad", 2_000, 200)
DEV = {"nfcorpus": None, "healthver": None, "mediqa": None, "squad": SQUAD_DEV}
# What evaluation sets hold, with a split of each. Of the first ones, training may use the rest.
JUDGED = {"squad": "dev", "mediqa": "dev", "wikiqa": "dev"}
WHOLE = {"healthver": "dev", "dl21": "test", "nfcorpus": "test", "scifact": "test"}


def main(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the data: see data.md.")] = Path(
        "../shared/data"
    ),
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for slates.")] = Path("build/slates"),
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the draws.")] = 0,
) -> None:
    """Write every file of slates that is missing."""
    log_to_stderr(1)
    with reported_errors("make_slates"):
        if not data.is_dir():
            raise ValueError(
                f"The folder {data} is missing; give it with --data. data.md beside this script describes it."
            )
        _write_all(data, output, seed)


def _write_all(data: Path, output: Path, seed: int) -> None:
    base = E2Rank.from_bundled("bundled-base")
    held = held_out(data)
    for source in MINED:
        path = output / f"{source.name}.parquet"
        if not path.exists():
            mining = replace(CANDIDATES, num_candidates=source.size, gold_from=source.gold_from)
            settings = {"source": asdict(source), "mining": asdict(mining), "most_gold": MOST_GOLD}
            slates = _mined(source, mining, base, held, data, output / "parts" / source.name, seed)
            _write(path, slates, Manifest(source.name, BASE, seed, settings))
    for dealt in DEALT:
        path = output / f"{dealt.name}.parquet"
        if not path.exists():
            _write(path, _dealt(dealt, held, data, seed), Manifest(dealt.name, None, seed, asdict(dealt)))
    for name, part in DEV.items():
        path = output / f"{name}_dev.jsonl"
        if not path.exists():
            whole = JudgedCorpus.load(data / name, "dev")
            write_first_stage(path, base, _part(whole, part, seed) if part else whole)


def _part(collection: JudgedCorpus, source: Mined, seed: int) -> JudgedCorpus:
    return draw_part(collection, source.documents, source.queries, f"{seed}\n{source.name}", source.first)


def held_out(data: Path) -> HeldOut:
    """Read what dev and test sets hold, because dev chooses the model and test tells what it is worth.

    Args:
        data: The data folder; a set that it lacks holds nothing.
    """
    held = HeldOut()
    for sets, add in ((JUDGED, held.add_split), (WHOLE, held.add_folder)):
        for name, split in sets.items():
            if (data / name).is_dir():
                add(data / name, split)
    logger.info("evaluation sets: %d documents, %d queries", len(held.documents), len(held.queries))
    return held


def _mined(
    source: Mined, mining: MiningSettings, model: E2Rank, held: HeldOut, data: Path, parts: Path, seed: int
) -> Iterator[Slate]:
    whole = held.unseen(data / source.name)
    if source.only is not None:
        whole = without(whole, {id_ for id_, text in whole.corpus.items() if not re.search(source.only, text)})
    if source.most_judged is not None:
        few = {query: grades for query, grades in whole.judgements.items() if len(grades) <= source.most_judged}
        whole = replace(whole, judgements=few)
    part = _part(whole, source, seed)
    asked = len(part.judgements)
    if source.claims:
        part = with_claims(part, source.claims, seed)
    if not source.siblings:
        part = with_siblings(part)
    claims = len(part.judgements) - asked
    logger.info("%s: %d queries, %d claims, %d documents", source.name, asked, claims, len(part.corpus))
    slates = mine(model, part, mining, source=source.name, parts=parts, batch_size=32, show_progress_bar=True)
    shorten = partial(cut, size=source.size, gold=MOST_GOLD, seed=seed, judged_wrong=source.siblings)
    return filter(_teaches, map(shorten, map(Slate.distinct, slates)))


def _teaches(slate: Slate) -> bool:
    """Whether there is an answer or a preference: some lists of mediqa hold wrong answers only."""
    return any(slate.gold) or len(set(slate.labels) - {None}) > 1


def _dealt(source: Dealt, held: HeldOut, data: Path, seed: int) -> Iterator[Slate]:
    """Yield parts of graded lists, or of a teacher's order."""
    path = data / source.path
    lists = read_beir(path, source=source.name) if path.is_dir() else read_results(path, source=source.name)
    for slate in held.unseen_slates(map(Slate.distinct, lists), source.name):
        if len(slate) >= source.least:
            # Many are relevant, so grades say more than gold flags.
            plain = replace(slate, gold=(False,) * len(slate))
            yield from deal(thin(plain, source.documents, seed), source.slates, source.size, seed)


def _write(path: Path, slates: Iterator[Slate], manifest: Manifest) -> None:
    written = write_slates(path, slates, manifest)
    logger.info("%s: %s slates, %s documents", path.name, written.counts["slates"], written.counts["documents"])


if __name__ == "__main__":
    typer.run(main)
