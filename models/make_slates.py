"""The data folder → the slates that the bundled model is trained on and chosen by.

    python models/make_slates.py --data ../shared/data --output build/slates

Questions get the passages that the untrained base finds nearest, so that a prompt made from a slate looks like one made
from a first stage's results; a stronger embedding model orders them, behind the passage that is known to be the answer.
A strong first stage's results and lists with many grades are few and long: each is dealt out into several slates, so
that prompts of one question differ.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sentence_transformers import SentenceTransformer

from e2rank_st import E2Rank
from e2rank_st.atomic import replacing
from e2rank_st.collection import Collection
from e2rank_st.index import Index
from e2rank_st.mining import MiningSettings, mine
from e2rank_st.readers import read_beir, read_results
from e2rank_st.slates import Manifest, Slate, write_slates
from e2rank_st.teachers import EmbeddingTeacher, label_slates

logger = logging.getLogger("make_slates")

BASE = "sentence-transformers/all-MiniLM-L6-v2"
TEACHER = "sentence-transformers/all-mpnet-base-v2"
TEACHER_TOKENS = 160
FEEDBACK = {"feedback_documents": 4, "feedback_weight": 0.5}
DEV_CANDIDATES = 100


@dataclass(frozen=True)
class Mined:
    """Questions whose candidates are mined.

    Attributes:
        name: Folder of the data.
        documents: About how many documents candidates are mined from: groups are drawn until there are as many.
        queries: How many questions are drawn of those whose answer is among them.
        is_taught: Whether the teacher orders the candidates; else the judged ones keep their grades, and the others
            are in no pair.
    """

    name: str
    documents: int
    queries: int
    is_taught: bool = True


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


MINED = (
    Mined("squad", 4_000, 4_500),
    Mined("medquad", 3_000, 2_500),
    Mined("wikiqa", 10_000, 873),
    Mined("mediqa", 2_000, 208, is_taught=False),
)
DEALT = (Dealt("dl22", 24, 80), Dealt("dl23", 16, 80))
CANDIDATES = MiningSettings(num_candidates=60, max_positive_similarity=0.98)


def main(argv: Sequence[str] | None = None) -> None:
    """Write every file that is not there yet."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.output.mkdir(parents=True, exist_ok=True)
    base = E2Rank.from_bundled(trained=False)
    teacher = None
    for source in MINED:
        path = options.output / f"{source.name}.parquet"
        if path.exists():
            continue
        slates = _mined(source, base, options)
        if source.is_taught:
            teacher = teacher or _teacher(options.teacher)
            labelled = label_slates(slates, teacher, show_progress_bar=True)
            slates = (gold_first(slate) for slate in labelled)
        settings = {"source": asdict(source), "mining": asdict(CANDIDATES)}
        if source.is_taught:
            settings["teacher"] = {"model": teacher_name(options.teacher), "max_seq_length": TEACHER_TOKENS, **FEEDBACK}
        _write(path, slates, Manifest(source.name, BASE, options.seed, settings))
    for dealt in DEALT:
        path = options.output / f"{dealt.name}.parquet"
        if not path.exists():
            slates = (part for slate in _lists(dealt, options.data) for part in deal(slate, dealt, options.seed))
            _write(path, slates, Manifest(dealt.name, None, options.seed, asdict(dealt)))
    path = options.output / "nfcorpus_dev.jsonl"
    if not path.exists():
        write_first_stage(path, base, Collection.load(options.data / "nfcorpus", "dev"))


def teacher_name(given: str) -> str:
    """What a manifest calls the teacher: its id, and not the folder on this machine that holds the usual one."""
    return TEACHER if Path(given).is_dir() else given


def gold_first(slate: Slate) -> Slate:
    """Raise the label of what is known to answer the question above all that the teacher prefers."""
    best = max(label for label in slate.labels if label is not None)
    labels = ((best + 1 if gold else label) for label, gold in zip(slate.labels, slate.gold, strict=True))
    return replace(slate, labels=tuple(labels))


def deal(slate: Slate, into: Dealt, seed: int) -> Iterator[Slate]:
    """Deal a long list out into slates of randomly drawn documents; a list that is short enough stays as it is."""
    if len(slate) <= into.size:
        yield slate
        return
    draw = random.Random(f"{seed}\n{slate.query}")
    for _ in range(into.slates):
        places = sorted(draw.sample(range(len(slate)), into.size))
        documents, labels, gold = (
            tuple(values[place] for place in places) for values in (slate.documents, slate.labels, slate.gold)
        )
        yield Slate(slate.query, documents, labels, gold, slate.source)


def draw_part(collection: Collection, source: Mined, seed: int) -> Collection:
    """Draw whole groups of documents (the id before ``#``), then questions that they answer."""
    draw = random.Random(f"{seed}\n{source.name}")
    groups: dict[str, list[str]] = {}
    for id_ in collection.corpus:
        groups.setdefault(id_.partition("#")[0], []).append(id_)
    chosen: list[str] = []
    for name in draw.sample(sorted(groups), len(groups)):
        if len(chosen) >= source.documents:
            break
        chosen += groups[name]
    corpus = {id_: collection.corpus[id_] for id_ in chosen}
    answered = [query for query, grades in collection.judgements.items() if grades.keys() <= corpus.keys()]
    queries = draw.sample(answered, min(source.queries, len(answered)))
    return Collection(corpus, collection.queries, {query: collection.judgements[query] for query in queries})


def write_first_stage(path: Path, model: E2Rank, collection: Collection) -> None:
    """Write the candidates that a model retrieves for the judged queries, and the judgements beside them."""
    index = Index.build(model, list(collection.corpus.values()), show_progress_bar=True)
    ids, queries = list(collection.corpus), list(collection.judgements)
    vectors = model.encode_query([collection.queries[query] for query in queries])
    scores, rows = index.retrieve(vectors, DEV_CANDIDATES)
    with replacing(path.with_suffix(".qrels")) as judged, replacing(path) as fresh:
        with fresh.open("w", encoding="utf-8") as file:
            for query, places, values in zip(queries, rows.tolist(), scores.tolist(), strict=True):
                hits = [
                    {"content": index.texts[row], "qid": query, "docid": ids[row], "rank": rank, "score": score}
                    for rank, (row, score) in enumerate(zip(places, values, strict=True), 1)
                ]
                file.write(json.dumps({"query": collection.queries[query], "hits": hits}) + "\n")
        grades = ((query, id_, grade) for query in queries for id_, grade in collection.judgements[query].items())
        judged.write_text("".join(f"{query} 0 {id_} {grade:g}\n" for query, id_, grade in grades), encoding="utf-8")
    logger.info("%s: %d queries", path.name, len(queries))


def _mined(source: Mined, model: E2Rank, options: argparse.Namespace) -> Iterator[Slate]:
    part = draw_part(Collection.load(options.data / source.name, "train"), source, options.seed)
    settings = replace(CANDIDATES, seed=options.seed, unjudged=not source.is_taught)
    parts = options.output / "parts" / source.name
    return mine(model, part, settings, source=source.name, parts=parts, batch_size=64, show_progress_bar=True)


def _teacher(name: str) -> EmbeddingTeacher:
    model = SentenceTransformer(name, model_kwargs={"dtype": "bfloat16"})
    model.max_seq_length = TEACHER_TOKENS
    return EmbeddingTeacher(model, **FEEDBACK)


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


def _write(path: Path, slates: Iterator[Slate], manifest: Manifest) -> None:
    written = write_slates(path, slates, manifest)
    logger.info("%s: %s slates, %s documents", path.name, written.counts["slates"], written.counts["documents"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("build/slates"), help="where slates go [%(default)s]")
    parser.add_argument("--teacher", default=TEACHER, help="Hub id of the teacher, or a folder that holds it")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn [%(default)s]")
    return parser


if __name__ == "__main__":
    main()
