"""The data folder → the slates that the bundled model is trained on and chosen by.

    python recipes/e2rank-minilm-l6/make_slates.py --data ../shared/data --output build/slates

Questions get the passages that the untrained base finds nearest, so that a prompt made from a slate looks like one made
from a first stage's results; what is known to answer them is gold, and the rest unjudged. Documents that dev judges are
left out, by their id: a text that comes again under another one stays. Claims are queries that are no questions: a
sentence, without some of its words, asks for the document that it was taken out of (inverse cloze task, Lee et al.
2019, arXiv 1906.00300). A few are left with a word or two, as some questions are. A strong first stage's order and
lists with many grades teach preferences. They are few and long: each is dealt out into several slates, so that prompts
of one question differ.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from e2rank_st import E2Rank
from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.formats import read_beir, read_results
from e2rank_st.data.slates import Manifest, Slate, write_slates
from e2rank_st.labelling.mining import MiningSettings, mine
from e2rank_st.search.index import Index
from e2rank_st.storage import replacing

logger = logging.getLogger("make_slates")

BASE = "sentence-transformers/all-MiniLM-L6-v2"
DEV_CANDIDATES = 100


@dataclass(frozen=True)
class Mined:
    """Questions whose candidates are mined.

    Attributes:
        name: Folder of the data.
        documents: About how many documents candidates are mined from: groups are drawn until there are as many.
        queries: How many questions are drawn of those whose answer is among them.
        claims: How many sentences are drawn as queries besides, from documents that answer none of the questions.
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
        slates: How many are made of each list.
        size: Documents in each.
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
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
CLAIM_WORDS = range(8, 31)  # words of a sentence that can be a claim
DROPPED = (0.1, 0.25, 0.4)  # chances of each of its words to be left out, one of which holds for a claim
CANDIDATES = MiningSettings(num_candidates=60, max_positive_similarity=0.98, unjudged=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Write every file that is not there yet."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.output.mkdir(parents=True, exist_ok=True)
    base = E2Rank.from_bundled(trained=False, model_kwargs={"dtype": "bfloat16"})
    for source in MINED:
        path = options.output / f"{source.name}.parquet"
        if not path.exists():
            settings = {"source": asdict(source), "mining": asdict(CANDIDATES)}
            _write(path, _mined(source, base, options), Manifest(source.name, BASE, options.seed, settings))
    for dealt in DEALT:
        path = options.output / f"{dealt.name}.parquet"
        if not path.exists():
            slates = (part for slate in _lists(dealt, options.data) for part in deal(slate, dealt, options.seed))
            _write(path, slates, Manifest(dealt.name, None, options.seed, asdict(dealt)))
    for name, part in (("nfcorpus", None), ("squad", SQUAD_DEV)):
        path = options.output / f"{name}_dev.jsonl"
        if not path.exists():
            whole = JudgedCorpus.load(options.data / name, "dev")
            write_first_stage(path, base, draw_part(whole, part, options.seed) if part else whole)


def deal(slate: Slate, into: Dealt, seed: int) -> Iterator[Slate]:
    """Deal a long list out into slates of randomly drawn documents; a list that is short enough stays as it is."""
    if len(slate) <= into.size:
        yield slate
        return
    draw = random.Random(f"{seed}\n{slate.query}")
    rows = list(zip(slate.documents, slate.labels, slate.gold, strict=True))
    for _ in range(into.slates):
        places = sorted(draw.sample(range(len(slate)), into.size))
        documents, labels, gold = zip(*(rows[place] for place in places), strict=True)
        yield Slate(slate.query, documents, labels, gold, slate.source)


def draw_part(collection: JudgedCorpus, source: Mined, seed: int) -> JudgedCorpus:
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
    return JudgedCorpus(corpus, collection.queries, {query: collection.judgements[query] for query in queries})


def unseen(folder: Path) -> JudgedCorpus:
    """Read the training split without the documents that dev judges, by which the model is chosen.

    Args:
        folder: Data in BEIR's layout; it may have no split ``dev``.

    Raises:
        FileNotFoundError: A file of the training split is missing.
    """
    train = JudgedCorpus.load(folder, "train")
    try:
        dev = JudgedCorpus.load(folder, "dev")
    except FileNotFoundError:  # it has no such split
        return train
    return without(train, {id_ for grades in dev.judgements.values() for id_ in grades})


def without(collection: JudgedCorpus, documents: Set[str]) -> JudgedCorpus:
    """Leave documents out; judgements of them, too."""
    corpus = {id_: text for id_, text in collection.corpus.items() if id_ not in documents}
    judgements = {
        query: {id_: grade for id_, grade in grades.items() if id_ in corpus}
        for query, grades in collection.judgements.items()
    }
    return JudgedCorpus(corpus, collection.queries, {query: grades for query, grades in judgements.items() if grades})


def with_claims(collection: JudgedCorpus, number: int, seed: int) -> JudgedCorpus:
    """Take sentences out of documents that answer no question, and let them ask for what is left.

    Args:
        collection: Documents and questions.
        number: How many; fewer where there are not as many documents with a sentence of the right length.
        seed: Of what is drawn.
    """
    draw = random.Random(f"{seed}\nclaims")
    answers = {id_ for grades in collection.judgements.values() for id_ in grades}
    free = [id_ for id_ in collection.corpus if id_ not in answers]
    corpus, judgements = dict(collection.corpus), dict(collection.judgements)
    queries = {query: collection.queries[query] for query in judgements}
    wanted = len(queries) + number
    for id_ in draw.sample(free, len(free)):
        if len(queries) >= wanted:
            break
        sentences = SENTENCE_END.split(corpus[id_])
        places = [place for place in range(1, len(sentences)) if len(sentences[place].split()) in CLAIM_WORDS]
        if len(sentences) < 3 or not places:
            continue
        words = sentences.pop(draw.choice(places)).split()
        dropped = draw.choice(DROPPED)
        queries[f"claim {id_}"] = " ".join([word for word in words if draw.random() >= dropped] or words)
        judgements[f"claim {id_}"] = {id_: 1.0}
        corpus[id_] = " ".join(sentences)
    return JudgedCorpus(corpus, queries, judgements)


def write_first_stage(path: Path, model: E2Rank, collection: JudgedCorpus) -> None:
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
    part = draw_part(unseen(options.data / source.name), source, options.seed)
    if source.claims:
        asked = len(part.judgements)
        part = with_claims(part, source.claims, options.seed)
        logger.info("%s: %d of %d claims", source.name, len(part.judgements) - asked, source.claims)
    settings = replace(CANDIDATES, seed=options.seed)
    parts = options.output / "parts" / source.name
    return mine(model, part, settings, source=source.name, parts=parts, batch_size=64, show_progress_bar=True)


def _lists(source: Dealt, data: Path) -> Iterator[Slate]:
    """Graded lists, or a strong first stage's order with the passages of a weak one behind it."""
    if (data / source.name).is_dir():
        for slate in read_beir(data / source.name):
            yield replace(slate, gold=(False,) * len(slate))  # so many are relevant that grades say more
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
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn [%(default)s]")
    return parser


if __name__ == "__main__":
    main()
