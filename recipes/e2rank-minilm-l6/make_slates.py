"""The data folder → slates to train the bundled model and to choose it.

    python recipes/e2rank-minilm-l6/make_slates.py --data ../shared/data --output build/slates

Questions get the passages that the untrained base finds nearest, so a slate's prompt looks like a first stage's
prompt. Known answers are gold, and the rest is unjudged. Documents that dev judges are left out by their id; a
copy of the text with a different id stays. Claims are sentences that ask for their own document. A strong first stage's
order and lists with many grades teach preferences. These lists are few and long. Each is dealt out into several slates,
because prompts of one question should differ. data.md describes the sources of the data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from e2rank_st import E2Rank
from e2rank_st.console import log_to_stderr, reported_errors
from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.formats import read_beir, read_results
from e2rank_st.data.slates import Manifest, Slate, write_slates
from e2rank_st.labelling.drawing import deal, draw_part, with_claims, without_documents
from e2rank_st.labelling.mining import MiningSettings, mine
from e2rank_st.labelling.retrieval import write_first_stage

logger = logging.getLogger("e2rank_st.recipe")

BASE = "sentence-transformers/all-MiniLM-L6-v2"
CANDIDATES = MiningSettings(num_candidates=60, max_positive_similarity=0.98, unjudged=True)


@dataclass(frozen=True)
class Mined:
    """Questions with mined candidates.

    Attributes:
        name: Folder of the data.
        documents: Least number of documents to mine from; whole groups are drawn until they hold it.
        queries: Number of questions to draw; their answers are among these documents.
        claims: Number of sentences to draw as further queries, from documents that answer none of the questions.
    """

    name: str
    documents: int
    queries: int
    claims: int = 0


@dataclass(frozen=True)
class Dealt:
    """Long lists that are dealt out.

    Attributes:
        name: Folder with judgements, or first-stage results of ``{name}_splade`` and ``{name}_bm25``.
        slates: Number of slates of each list.
        size: Documents in each slate.
    """

    name: str
    slates: int
    size: int


MINED = (
    Mined("squad", 20_000, 8_000, 1_500),
    Mined("medquad", 20_000, 8_000, 1_500),
    Mined("wikiqa", 10_000, 873),
    Mined("mediqa", 2_000, 208),
)
DEALT = (Dealt("dl22", 48, 60), Dealt("dl23", 36, 60))
SQUAD_DEV = Mined("squad", 2_000, 200)


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
    base = E2Rank.from_bundled(trained=False, model_kwargs={"dtype": "bfloat16"})
    for source in MINED:
        path = output / f"{source.name}.parquet"
        if not path.exists():
            settings = {"source": asdict(source), "mining": asdict(CANDIDATES)}
            slates = _mined(source, base, data, output / "parts" / source.name, seed)
            _write(path, slates, Manifest(source.name, BASE, seed, settings))
    for dealt in DEALT:
        path = output / f"{dealt.name}.parquet"
        if not path.exists():
            lists = _lists(dealt, data)
            slates = (part for slate in lists for part in deal(slate, dealt.slates, dealt.size, seed))
            _write(path, slates, Manifest(dealt.name, None, seed, asdict(dealt)))
    for name, part in (("nfcorpus", None), ("squad", SQUAD_DEV)):
        path = output / f"{name}_dev.jsonl"
        if not path.exists():
            whole = JudgedCorpus.load(data / name, "dev")
            write_first_stage(path, base, _part(whole, part, seed) if part else whole)


def _part(collection: JudgedCorpus, source: Mined, seed: int) -> JudgedCorpus:
    return draw_part(collection, source.documents, source.queries, f"{seed}\n{source.name}")


def unseen(folder: Path) -> JudgedCorpus:
    """Read the training split without the documents that dev judges, because dev chooses the model.

    Args:
        folder: Data in BEIR's layout; the split ``dev`` may be missing.

    Raises:
        FileNotFoundError: A file of the training split is missing.
    """
    train = JudgedCorpus.load(folder, "train")
    try:
        dev = JudgedCorpus.load(folder, "dev")
    except FileNotFoundError:
        return train
    return without_documents(train, {id_ for grades in dev.judgements.values() for id_ in grades})


def _mined(source: Mined, model: E2Rank, data: Path, parts: Path, seed: int) -> Iterator[Slate]:
    part = _part(unseen(data / source.name), source, seed)
    if source.claims:
        asked = len(part.judgements)
        part = with_claims(part, source.claims, seed)
        logger.info("%s: %d of %d claims", source.name, len(part.judgements) - asked, source.claims)
    return mine(model, part, CANDIDATES, source=source.name, parts=parts, batch_size=64, show_progress_bar=True)


def _lists(source: Dealt, data: Path) -> Iterator[Slate]:
    """Yield graded lists, or a strong first stage's order followed by the passages of a weak one."""
    if (data / source.name).is_dir():
        for slate in read_beir(data / source.name):
            yield replace(slate, gold=(False,) * len(slate))  # many are relevant, so grades say more
        return
    strong, weak = (data / "rerank" / f"{source.name}_{kind}_top100.jsonl.gz" for kind in ("splade", "bm25"))
    others = {slate.query: slate.documents for slate in read_results(weak)}
    for slate in read_results(strong):
        rest = [text for text in dict.fromkeys(others.get(slate.query, ())) if text not in slate.documents]
        labels = (*(label + 1 for label in slate.labels if label is not None), *(0.0 for _ in rest))
        yield Slate(slate.query, (*slate.documents, *rest), labels, source=source.name).distinct()


def _write(path: Path, slates: Iterator[Slate], manifest: Manifest) -> None:
    written = write_slates(path, slates, manifest)
    logger.info("%s: %s slates, %s documents", path.name, written.counts["slates"], written.counts["documents"])


if __name__ == "__main__":
    typer.run(main)
