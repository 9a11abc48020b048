"""Mining gives the same as brute force, for all chunks and rules, and after an interruption."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

import e2rank_st.labelling.mining as mining_module
import e2rank_st.search.exact as exact_module
from e2rank_st import E2Rank
from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.data.slates import DataError, Manifest, Slate, write_slates
from e2rank_st.labelling.mining import MiningSettings, mine

DIMENSION = 16


class Embedder:
    """Stands in for a model: random vectors that depend on the text alone, or those it was given."""

    def __init__(self, given: dict[str, Sequence[float]] | None = None, salt: str = "") -> None:
        self.given = given or {}
        self.salt = salt
        self.device = torch.device("cpu")
        self.prompts = {"query": "", "document": ""}
        self.max_seq_length = 32
        self.embedded: list[str] = []

    def encode_query(self, texts: list[str], **options: object) -> np.ndarray:
        """As the real one, but for its options."""
        self.embedded += texts
        return np.array([self.vector(text) for text in texts], np.float32)

    encode_document = encode_query

    def vector(self, text: str) -> np.ndarray:
        """A vector of any length."""
        if text in self.given:
            return np.asarray(self.given[text])
        seed = int.from_bytes(hashlib.sha256((self.salt + text).encode()).digest()[:8], "big")
        return np.random.default_rng(seed).normal(size=DIMENSION)


@pytest.fixture(scope="module")
def collection() -> JudgedCorpus:
    """60 documents in groups of 4, two of them the same text; 23 queries with one or three judged documents."""
    corpus = {f"g{number // 4}#{number % 4}": f"document {number}" for number in range(60)}
    corpus["copy"] = " Document  5"
    queries = {f"q{number}": f"query {number}" for number in range(23)}
    ids = list(corpus)
    judgements = {query: {ids[number]: 1.0} for number, query in enumerate(queries)}
    judgements["q7"] = {ids[7]: 2.0, ids[40]: 0.0, ids[41]: 1.0}
    return JudgedCorpus(corpus, queries, judgements)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def brute_force(model: Embedder, collection: JudgedCorpus, settings: MiningSettings) -> dict[str, list[str]]:
    """Candidates by the definition of every rule, one query and one document at a time."""
    found = {}
    for query, grades in collection.judgements.items():
        vector = unit(model.vector(collection.queries[query]))
        gold = [id_ for id_, grade in grades.items() if grade >= settings.gold_from]
        positives = [unit(model.vector(collection.corpus[id_])) for id_ in gold]
        worst = min((vector @ positive for positive in positives), default=np.inf)
        taken = {" ".join(collection.corpus[id_].split()).casefold() for id_ in grades}
        scores, seen = {}, set()
        for text in collection.corpus.values():
            document = unit(model.vector(text))
            plain = " ".join(text.split()).casefold()
            passes = (
                plain not in taken | seen
                and (settings.relative_margin is None or not gold
                     or vector @ document <= worst - abs(worst) * settings.relative_margin)
                and (settings.max_positive_similarity is None
                     or all(document @ positive <= settings.max_positive_similarity for positive in positives))
            )  # fmt: skip
            seen.add(plain)  # of the same texts the first stands for all
            if passes:
                scores[text] = vector @ document
        found[query] = sorted(scores, key=lambda text: -scores[text])[: settings.num_candidates]
    return found


def candidates(slates: Sequence[Slate], collection: JudgedCorpus) -> dict[str, list[str]]:
    """What was mined for each query."""
    judged = {collection.queries[query]: len(grades) for query, grades in collection.judgements.items()}
    ids = {text: id_ for id_, text in collection.queries.items()}
    return {ids[slate.query]: list(slate.documents[judged[slate.query] :]) for slate in slates}


RULES = [
    {},
    {"num_candidates": 100},
    {"relative_margin": 0.1},
    {"max_positive_similarity": 0.2},
    {"max_positive_similarity": 0.3, "relative_margin": 0.2},
    {"gold_from": 2, "relative_margin": 0.1},
]


def chunk(patch: pytest.MonkeyPatch, queries: int, documents: int) -> None:
    """Look at so many queries and documents at a time."""
    patch.setattr(mining_module, "QUERIES_AT_ONCE", queries)
    patch.setattr(exact_module, "DOCUMENTS_AT_ONCE", documents)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_same_as_brute_force(rules: dict, collection: JudgedCorpus, monkeypatch: pytest.MonkeyPatch):
    """Guards against a rule applied after the best are taken, to the wrong query, or the wrong way round."""
    chunk(monkeypatch, 7, 9)
    settings = MiningSettings(**{"num_candidates": 5, **rules})
    model = Embedder()
    expected = brute_force(model, collection, settings)
    assert candidates(list(mine(model, collection, settings)), collection) == expected
    unruled = brute_force(model, collection, MiningSettings(num_candidates=5))
    assert (expected == unruled) == (not rules)


def test_chunk_sizes_do_not_matter(tiny: E2Rank, collection: JudgedCorpus, monkeypatch: pytest.MonkeyPatch):
    """Guards against ties and near ties that fall otherwise in chunks of another size; an untrained model has many."""
    settings = MiningSettings(num_candidates=6, max_positive_similarity=0.9999)
    found = []
    for sizes in [(1000, 1000), (1, 1), (4, 13)]:
        chunk(monkeypatch, *sizes)
        found.append(list(mine(tiny, collection, settings)))
    assert found[1:] == [found[0], found[0]]
    assert max(map(len, found[0])) > 6


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_products_of_few_bits_only_preselect(precision: str):
    """Guards against other candidates where torch is set to calculate float32 products in bfloat16."""
    draw = np.random.default_rng(0)
    corpus = {f"d{number}": f"text {number}" for number in range(300)}
    centre = draw.normal(size=64)
    near = {text: centre + 0.02 * draw.normal(size=64) for text in corpus.values()}
    model = Embedder({**near, "query": centre + 0.02 * draw.normal(size=64)})
    collection = JudgedCorpus(corpus, {"q": "query"}, {"q": {"d0": 1}})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        slates = list(mine(model, collection, MiningSettings(20)))
    finally:
        torch.set_float32_matmul_precision(before)
    assert candidates(slates, collection) == brute_force(model, collection, MiningSettings(20))


def test_nothing_is_mined_ahead(collection: JudgedCorpus, monkeypatch: pytest.MonkeyPatch):
    """Guards against a generator that mines everything before the first slate."""
    monkeypatch.setattr(mining_module, "QUERIES_AT_ONCE", 5)
    searched, search = [], mining_module.nearest
    monkeypatch.setattr(mining_module, "nearest", lambda *args, **more: searched.append(1) or search(*args, **more))
    slates = mine(Embedder(), collection)
    next(slates)
    assert len(searched) == 1
    assert len(list(slates)) == 22 and len(searched) == 5


def test_texts_that_are_no_candidates(collection: JudgedCorpus):
    """Guards against a copy of the positive as its own negative, a candidate twice in a slate, and an empty one."""
    assert " Document  5" in collection.corpus.values(), "the premise"
    odd = replace(collection, corpus=collection.corpus | {"empty": " "}, judgements=collection.judgements | {"q9": {}})
    slates = {slate.query: slate for slate in mine(Embedder(), odd, MiningSettings(100))}
    assert slates["query 5"].documents.count("document 5") == 1
    assert all(not {" Document  5", " "} & set(slate.documents) for slate in slates.values())
    assert {len(slate) for slate in slates.values()} == {60}
    assert not any(slates["query 9"].gold), "a query without judgements gets candidates"
    with pytest.raises(DataError, match=r"^query 'q1': documents: a text is empty"):
        list(mine(Embedder(), replace(odd, judgements={"q1": {"empty": 1}})))


def test_labels_and_gold(collection: JudgedCorpus):
    """Guards against grades lost beside mined candidates, and against candidates marked as gold."""
    slate = next(
        slate for slate in mine(Embedder(), collection, MiningSettings(2), source="s") if slate.query == "query 7"
    )
    assert slate.documents[:3] == ("document 7", "document 40", "document 41")
    assert slate.labels == (2, 0, 1, 0, 0)
    assert slate.gold == (True, False, True, False, False)
    assert slate.source == "s"
    strict = MiningSettings(2, unjudged=True, gold_from=2)
    slate = next(slate for slate in mine(Embedder(), collection, strict) if slate.query == "query 7")
    assert slate.labels == (2, 0, 1, None, None)
    assert slate.gold == (True, False, False, False, False)


@pytest.mark.parametrize("survived", [0, 1, 3])
def test_resuming_gives_the_same_bytes(survived: int, collection: JudgedCorpus, tmp_path: Path, monkeypatch):
    """Guards against a restart from the beginning, a lost chunk, or a different file than from an unbroken run."""
    settings = MiningSettings(3)
    monkeypatch.setattr(mining_module, "QUERIES_AT_ONCE", 5)
    monkeypatch.setattr(mining_module, "TEXTS_AT_ONCE", 25)
    unbroken = write_slates(tmp_path / "unbroken.parquet", mine(Embedder(), collection, settings), Manifest("s"))
    nearest, calls = mining_module.nearest, []

    def dying(*args, **options):
        if len(calls) == survived:
            raise KeyboardInterrupt
        calls.append(args)
        return nearest(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mining_module, "nearest", dying)
        slates = mine(Embedder(), collection, settings, parts=tmp_path / "parts")
        with pytest.raises(KeyboardInterrupt):
            write_slates(tmp_path / "resumed.parquet", slates, Manifest("s"))
    assert not (tmp_path / "resumed.parquet").exists()

    model = Embedder()
    resumed = write_slates(
        tmp_path / "resumed.parquet", mine(model, collection, settings, parts=tmp_path / "parts"), Manifest("s")
    )
    assert resumed.sha256 == unbroken.sha256
    assert set(model.embedded) <= {"query 0", "query 1", "query 2"}  # nothing but a look whether it is the same model
    assert len(list((tmp_path / "parts").glob("candidates-*"))) == 5
    assert len(list((tmp_path / "parts").glob("documents-*"))) == 3


def test_interrupted_embedding_goes_on(collection: JudgedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against hours of embedding lost because the run stopped before the first search."""
    monkeypatch.setattr(mining_module, "TEXTS_AT_ONCE", 25)

    class Dying(Embedder):
        def encode_document(self, texts: list[str], **options: object) -> np.ndarray:
            if "document 30" in texts:
                raise KeyboardInterrupt
            return super().encode_query(texts)

    with pytest.raises(KeyboardInterrupt):
        list(mine(Dying(), collection, parts=tmp_path))
    model = Embedder()
    assert list(mine(model, collection, parts=tmp_path)) == list(mine(Embedder(), collection))
    assert "document 24" not in model.embedded and "document 25" in model.embedded


def test_parts_of_another_run_are_refused(collection: JudgedCorpus, tmp_path: Path):
    """Guards against candidates of other data, settings or weights that pass for this run's."""
    list(mine(Embedder(), collection, parts=tmp_path))
    other = replace(collection, judgements={"q1": {"copy": 1}})
    for reason, change in {
        "settings": lambda: mine(Embedder(), collection, MiningSettings(3), parts=tmp_path),
        "judgements": lambda: mine(Embedder(), other, parts=tmp_path),
        "corpus": lambda: mine(Embedder(), replace(other, corpus={"copy": "x"}), parts=tmp_path),
        "a different model": lambda: mine(Embedder(salt="trained"), collection, parts=tmp_path),
    }.items():
        with pytest.raises(ValueError, match=f"holds parts .*{reason}.*; delete it, or give a new folder"):
            change()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judgements": {"q1": {"d99": 1}}}, "name document 'd99' of query 'q1', which lacks a text"),
        ({"judgements": {"q99": {"copy": 1}}}, "name query 'q99', which lacks a text"),
        ({"corpus": {"d": " "}, "judgements": {"q1": {}}}, "The corpus holds no text"),
    ],
)
def test_incomplete_collections_are_refused(changes: dict, message: str, collection: JudgedCorpus):
    """Guards against a KeyError in the middle of a run."""
    with pytest.raises(ValueError, match=message):
        mine(Embedder(), replace(collection, **changes))


@pytest.mark.parametrize("margin", [{}, {"relative_margin": 0.6}], ids=str)
def test_margins_mean_what_they_mean_in_sentence_transformers(margin: dict, bundled: E2Rank, facts: list[str]):
    """Guards against a margin of the same name that lets other candidates pass."""
    pairs = {"how long do fleas live": 0, "what is the capital of China": 1, "why does bread rise": 3}
    corpus = {f"d{number}": text for number, text in enumerate(facts)}
    queries = {f"q{number}": query for number, query in enumerate(pairs)}
    judgements = {f"q{number}": {f"d{positive}": 1} for number, positive in enumerate(pairs.values())}
    collection = JudgedCorpus(corpus, queries, judgements)
    found, unruled = (
        {slate.query: list(slate.documents[1:]) for slate in mine(bundled, collection, MiningSettings(4, **rules))}
        for rules in (margin, {})
    )
    assert (found == unruled) == (not margin)
    theirs = mine_hard_negatives(
        Dataset.from_dict({"anchor": list(pairs), "positive": [facts[positive] for positive in pairs.values()]}),
        bundled,
        corpus=facts,
        num_negatives=4,
        range_max=9,
        output_format="labeled-list",
        verbose=False,
        **margin,
    )
    expected = {row[0]: [text for text, label in zip(row[1], row[2], strict=True) if not label]
                for row in (list(row.values()) for row in theirs)}  # fmt: skip
    # What has nothing left is left out there, and keeps its positive here.
    assert {query: texts for query, texts in found.items() if texts} == expected


def test_settings_are_checked():
    """Guards against settings that would mine nothing."""
    with pytest.raises(ValueError, match="num_candidates must be at least 1, got 0"):
        MiningSettings(num_candidates=0)
