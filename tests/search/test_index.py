"""SearchIndex: documents are kept, found and reranked with their stored vectors, in memory and on disk."""

import copy
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

import e2rank_st.search.index as module
from e2rank_st import E2Rank, SearchIndex
from e2rank_st.data.files import DataError
from e2rank_st.search.index import Changes
from e2rank_st.search.records import Record
from e2rank_st.search.store import Entry
from tests.toy import train_a_step, with_prompt_adapter

QUERY = "how long do fleas live"
Make = Callable[..., SearchIndex]


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Creates an index of either kind."""
    path = None if request.param == "memory" else tmp_path / "an index, größer"
    return lambda *args, **options: SearchIndex.create(path, *args, **options)


@pytest.fixture
def embedded(tiny: E2Rank, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the model embeds as documents."""
    texts: list[str] = []
    encode = tiny.encode_document
    monkeypatch.setattr(tiny, "encode_document", lambda part, **kwargs: texts.extend(part) or encode(part, **kwargs))
    return texts


def rows(facts: list[str]) -> list[dict[str, Any]]:
    return [{"id": f"f{row}", "text": text, "year": 2000 + row} for row, text in enumerate(facts)]


def test_results_are_those_of_rerank_on_the_nearest(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against ids, ranks and scores that are mixed up between retrieval and reranking."""
    index = make(tiny, rows(facts), dtype="float32")
    vectors, query = tiny.encode_document(facts), tiny.encode_query(QUERY)
    cosines = vectors @ query
    nearest = np.argsort(-cosines)[:6]
    expected = tiny.rerank(QUERY, [facts[row] for row in nearest], document_embeddings=vectors[nearest], top_k=4)
    hits = index.search(QUERY, 4, 6)
    assert [hit["id"] for hit in hits] == [f"f{nearest[hit['corpus_id']]}" for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in expected], atol=1e-6)
    for hit in hits:
        row = int(hit["id"][1:])
        assert nearest[hit["retrieval_rank"] - 1] == row
        assert hit["retrieval_score"] == pytest.approx(cosines[row], abs=1e-6)
        assert hit["similarity"] == pytest.approx(cosines[row], abs=1e-6)
        assert (hit["text"], hit["title"], hit["fields"]) == (facts[row], "", {"year": 2000 + row})


def test_plain_retrieval_is_exact(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against an order that is not that of the cosines, and vectors that half precision has spoilt."""
    index = make(tiny, facts)
    queries = [QUERY, "rivers", "metal"]
    cosines = tiny.encode_query(queries) @ tiny.encode_document(facts).T
    for found, expected in zip(index.search(queries, 10, rerank=False), cosines, strict=True):
        assert [hit["text"] for hit in found] == [facts[row] for row in np.argsort(-expected)]
        np.testing.assert_allclose([hit["score"] for hit in found], -np.sort(-expected), atol=1e-3)
        assert [hit["retrieval_rank"] for hit in found] == list(range(1, 11))


def test_a_search_costs_two_forward_passes(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against documents that are embedded again, and a query that is embedded twice for its share."""
    model = copy.deepcopy(tiny)
    model.replace_listwise(query_weight=0.5)
    index = make(model, facts)
    passes: list[int] = []
    hook = model[0].register_forward_hook(lambda module, args, output: passes.append(len(args[0]["input_ids"])))
    index.search(QUERY)
    index.search([QUERY, "rivers", "metal"], min_similarity=-1.0)
    index.search(QUERY, rerank=False)
    hook.remove()
    assert passes == [1, 1, 3, 3, 1]


def test_many_queries_are_as_single_ones(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against results that depend on the other queries of a call."""
    index = make(tiny, facts)
    queries = [QUERY, "rivers", "metal"]
    for hits, query in zip(index.search(queries, 5), queries, strict=True):
        alone = index.search(query, 5)
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in alone]
        np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in alone], atol=1e-5)
    assert index.search([]) == []
    assert index.search([QUERY, QUERY], 0) == [[], []]
    assert make_empty(index).search([QUERY], 3) == [[]]


def make_empty(index: SearchIndex) -> SearchIndex:
    index.delete([hit["id"] for hit in index.search("anything", 100)])
    assert len(index) == 0
    return index


def test_documents_are_added_replaced_changed_and_removed(make: Make, tiny: E2Rank, facts: list[str], embedded: list):
    """Guards against doubles, lost fields, and documents that are embedded again without need."""
    index = make(tiny, rows(facts[:6]))
    embedded.clear()
    assert index.add(rows(facts[:6])) == Changes(unchanged=6)
    assert index.add([{**rows(facts)[0], "year": 1900}, *rows(facts)[1:]]) == Changes(4, 1, 5)
    index.update([{"id": "f1", "year": 1901}])
    assert index.add([{"id": "f9", "text": "first"}, {"id": "f9", "text": "then"}]) == Changes(1, 0, 0)
    assert embedded == [*facts[6:], "then"]
    assert index.update([{"id": "f0", "lang": "en", "year": None}]) == Changes(0, 1, 0)
    assert index.update([{"id": "f1", "year": 2001}, {"id": "f1", "text": "rivers"}]) == Changes(1, 0, 0)
    assert embedded[-1] == "rivers"
    found = index.get(["f0", "f1", "f9", "none"])
    assert {id_: (record.text, record.fields) for id_, record in found.items()} == {
        "f0": (facts[0], {"lang": "en"}),
        "f1": ("rivers", {"year": 2001}),
        "f9": ("then", {}),
    }
    index.delete(["f0", "none"])
    assert len(index) == 9
    assert "f0" not in {hit["id"] for hit in index.search(QUERY, 20)}
    with pytest.raises(ValueError, match="1 ids are not in the index, as 'none'"):
        index.update([{"id": "none", "year": 1}])
    with pytest.raises(ValueError, match=r"documents\[0\] must be a mapping with 'id'"):
        index.update(["text"])


def test_interrupted_work_goes_on(make: Make, tiny: E2Rank, facts: list[str], embedded: list, monkeypatch):
    """Guards against a bad document, or an interruption, that costs the documents before it."""
    monkeypatch.setattr(module, "PART_DOCUMENTS", 3)
    index = make(tiny)
    embedded.clear()
    with pytest.raises(DataError, match=r"documents\[7\]: text: not a string"):
        index.add([*facts[:7], {"text": 3}, *facts[7:]])
    assert len(index) == 7

    def stopped():
        yield from facts[:8]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(stopped())
    assert index.add(facts) == Changes(3, 0, 7)
    assert embedded == facts


@pytest.mark.parametrize(
    "convert",
    [
        list,
        iter,
        lambda rows: (row for row in rows),
        pd.DataFrame,
        pl.DataFrame,
        pa.Table.from_pylist,
        Dataset.from_list,
        lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
    ],
)
def test_tables_and_lists_of_any_kind(convert: Callable[[Any], Any], tiny: E2Rank, facts: list[str]):
    """Guards against names of columns that are taken for documents, and values that are not Python's own."""
    given = [{**row, "title": None} for row in rows(facts[:4])]
    index = SearchIndex.create(None, tiny, convert(given))
    assert {id_: (part.text, part.fields) for id_, part in index.get([row["id"] for row in given]).items()} == {
        row["id"]: (row["text"], {"year": row["year"]}) for row in given
    }
    json.dumps(index.search(QUERY, 4))


@pytest.mark.parametrize("convert", [np.array, pd.Series, pl.Series, pa.array, tuple, lambda texts: (t for t in texts)])
def test_columns_of_texts(convert: Callable[[Any], Any], tiny: E2Rank, facts: list[str]):
    """Guards against a column that is not read as texts."""
    index = SearchIndex.create(None, tiny, convert(facts))
    assert sorted(hit["text"] for hit in index.search(QUERY, 10)) == sorted(facts)


def test_files_and_folders(tiny: E2Rank, facts: list[str], tmp_path: Path, caplog):
    """Guards against a form of file that the command line reads and the library does not."""
    given = rows(facts[:3])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    pd.DataFrame(given).to_csv(tmp_path / "rows.csv", index=False)
    pd.DataFrame(given).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        found = SearchIndex.create(None, tiny, tmp_path / name).get(["f0", "f1", "f2"])
        assert [record.text for record in found.values()] == facts[:3]
        assert [int(record.fields["year"]) for record in found.values()] == [2000, 2001, 2002]
    notes = tmp_path / "notes"
    for name in ("b.txt", "a/c.md", ".hidden/d.txt", ".e.txt", "f.pdf", "blank.txt"):
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_text(" " if name == "blank.txt" else f"text of {name}")
    assert {hit["id"] for hit in SearchIndex.create(None, tiny, notes).search(QUERY)} == {"b.txt", "a/c.md"}
    assert "left out 1 files that do not end in" in caplog.text
    assert "left out 1 files without text" in caplog.text
    (notes / "g.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"g\.txt.*not UTF-8.*move it out"):
        SearchIndex.create(None, tiny, notes)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("notes", "pathlib.Path"),
        ({"d1": "text"}, "got dict"),
        (3, "got int"),
        ([3], r"documents\[0\]: document: of an unknown kind; got int"),
        (["a", {"id": "x"}], r"documents\[1\]: text: missing"),
        ([{"text": "a", "id": True}], "id: not a string"),
        ([{"text": "a", "id": " "}], "id: empty"),
        ([{"text": "half \ud800"}], "half a character"),
        ([{"text": "a", "vector": [1.0]}], "vector: a reserved name"),
        ([{"text": "a", "share": float("inf")}], "share: not a number; got inf"),
        ([{"text": "a", "share": [0.5, float("nan")]}], "share: not a number; got nan"),
        ([{"text": "a", "share": {"a": [{"b": float("inf")}]}}], "share: not a number; got inf"),
        ([{"text": "a", "_distance": 1}], "field: not a name"),
        ([{"text": "a", 3: 1}], "field: not a name"),
        ([{"text": "a", "x.y": 1}], "not a name of a field"),
        ([{"text": "a", "`": 1}], "not a name of a field"),
        ([{"text": "a", "x" * 1_000_000: 1}], "not a name of a field"),
    ],
)
def test_bad_documents_are_refused(make: Make, tiny: E2Rank, documents: Any, message: str):
    """Guards against documents that are read letter by letter, and fields that no filter can name."""
    with pytest.raises(ValueError, match=message) as caught:
        make(tiny, documents)
    assert len(str(caught.value)) < 500


def test_documents_without_ids_are_named_by_their_text(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against doubles of a text, and against documents that differ in their titles and become one."""
    index = make(tiny, [*facts, *facts, {"title": "Pets", "text": facts[0]}, ""])
    assert len(index) == 12
    assert index.add([{"text": facts[0], "title": ""}]) == Changes(unchanged=1)


def test_titles_are_a_part_of_what_is_embedded(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against a template that is used for some of vectors, prompts and scores only."""
    model = copy.deepcopy(tiny)
    model.replace_listwise(document_template="{title}: {text}")
    index = make(model, [{"id": "d", "title": "Pets", "text": facts[0]}], dtype="float32")
    model.replace_listwise(document_template="{text} {title}")  # the index keeps its own
    index.add([{"id": "e", "title": "Pets", "text": facts[1]}])
    expected = model.rerank(QUERY, [f"Pets: {facts[0]}", f"Pets: {facts[1]}"])
    hits = index.search(QUERY)
    assert [hit["id"] for hit in hits] == ["de"[hit["corpus_id"]] for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in expected], atol=1e-5)


def test_documents_with_known_vectors(tiny: E2Rank, facts: list[str]):
    """Guards against vectors that are made again, or belong to other documents."""
    vectors = tiny.encode_document(facts)
    index = SearchIndex.from_vectors(tiny, rows(facts), 3 * vectors)
    expected = SearchIndex.create(None, tiny, rows(facts)).search(QUERY, 10)
    assert [hit["id"] for hit in index.search(QUERY, 10)] == [hit["id"] for hit in expected]
    for wrong in (vectors[:9], vectors[:, :5], vectors[0]):
        with pytest.raises(ValueError, match="shape"):
            SearchIndex.from_vectors(tiny, facts, wrong)


def test_equal_scores_do_not_follow_the_ids(make: Make, tiny: E2Rank):
    """Guards against an order of equal documents that shows which of them are relevant."""
    documents = [{"id": f"d{row}", "text": "the same"} for row in range(8)]
    orders = [[hit["id"] for hit in make(tiny, part).search("a", 8)] for part in (documents, documents[::-1])]
    assert orders[0] == orders[1] != sorted(orders[0])


def test_threads_add_to_an_index_in_memory(tiny: E2Rank):
    """Guards against a change that is lost because another one read the documents before it."""
    index = SearchIndex.create(None, tiny)
    vectors = np.ones((1, 32), np.float32)
    parts = [[Entry(Record(f"{part} {row}", "a"), vectors)] for part in range(8) for row in range(50)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(index.store.add, parts))
    assert len(index) == 400


def test_filters_by_value(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against a filter that comes after the best are taken, and so leaves fewer."""
    index = make(tiny, [{**row, "lang": "en" if row["year"] % 2 else "de"} for row in rows(facts)])
    assert {hit["id"] for hit in index.search(QUERY, 3, where={"lang": "de", "year": [2000, 2008, 2001]})} == {
        "f0",
        "f8",
    }
    assert len(index.search(QUERY, 5, 5, where={"lang": "en"})) == 5
    assert index.search(QUERY, where={"lang": "xx"}) == []
    assert [hit["id"] for hit in index.search(QUERY, where={"id": "f3"})] == ["f3"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"yeer": 2001}, "where names the field 'yeer'; this index has 'id', 'title', 'text', 'year', 'lang'"),
        ({"year": 2001, "vector": 1}, "where names the field 'vector'; this index has"),
        ({3: 2001}, "where names the field 3; this index has"),
        ({"year": None}, "gives the field 'year' a value that cannot be compared: got NoneType None; give text"),
        ({"year": [2001, {"a": 1}]}, "gives the field 'year' a value that cannot be compared: got dict"),
        ({}, "where must be {field: value}, or on disk a condition in SQL; got {}"),
        (3, "where must be {field: value}, or on disk a condition in SQL; got 3"),
    ],
)
def test_bad_filters_are_told_alike(make: Make, tiny: E2Rank, facts: list[str], where: Any, message: str):
    """Guards against a misspelt field that finds nothing in memory and is an error on disk."""
    index = make(tiny, [*rows(facts[:3]), {"id": "g", "text": facts[3], "lang": "en"}])
    index.delete(["g"])
    with pytest.raises(ValueError, match=re.escape(message)):
        index.search(QUERY, where=where)
    assert [hit["id"] for hit in index.search(QUERY, where={"year": {np.int64(2001)}})] == ["f1"]
    assert index.search(QUERY, where={"lang": "en"}) == []
    make_empty(index)
    with pytest.raises(ValueError, match=re.escape(message)):
        index.search(QUERY, where=where)


def test_least_similarity(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against a threshold on listwise scores, or one that holds with reranking only."""
    index = make(tiny, facts)
    similar = sorted((hit["similarity"] for hit in index.search(QUERY, 10)), reverse=True)
    for rerank in (True, False):
        found = index.search(QUERY, 10, min_similarity=similar[3], rerank=rerank)
        assert sorted((hit["similarity"] for hit in found), reverse=True) == similar[:4]


def test_first_stage_scores_count(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against a weight that is taken and not used: with all the weight, the first stage's order stays."""
    index = make(tiny, facts)
    first = index.search(QUERY, 10, rerank=False)
    assert [hit["id"] for hit in index.search(QUERY, 10, first_stage_weight=1.0)] == [hit["id"] for hit in first]
    assert [hit["id"] for hit in index.search(QUERY, 10)] != [hit["id"] for hit in first]


def test_passages(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against a long document that is found by its start only, or comes once for each passage."""
    model = copy.deepcopy(tiny)
    model.max_seq_length = 24
    documents = [" ".join(facts[row:] + facts[:row]) for row in range(0, 10, 3)] + [facts[6]]
    index = make(model, documents, long_documents="passages", dtype="float32")
    query = model.encode_query(QUERY)
    passages = [model.listwise.passages(text) for text in documents]
    assert max(map(len, passages)) > 4 and len(passages[-1]) == 1
    expected = [float((model.encode_document(part) @ query).max()) for part in passages]
    found = index.search(QUERY, 10, rerank=False)
    assert [hit["text"] for hit in found] == [documents[row] for row in np.argsort(expected)[::-1]]
    np.testing.assert_allclose([hit["score"] for hit in found], sorted(expected, reverse=True), atol=1e-5)
    ranked = model.rerank(QUERY, [hit["text"] for hit in found], long_documents="passages", candidate_order="given")
    hits = index.search(QUERY, 10)
    assert [hit["text"] for hit in hits] == [found[hit["corpus_id"]]["text"] for hit in ranked]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in ranked], atol=1e-5)


def test_a_changed_model_is_refused(make: Make, tiny: E2Rank, facts: list[str]):
    """Guards against vectors of two models in an index: silent nonsense."""
    model = copy.deepcopy(tiny)
    index = make(model, facts)
    train_a_step(model)
    for use in (lambda: index.search(QUERY), lambda: index.add(["text"]), lambda: index.retrieve([QUERY])):
        with pytest.raises(ValueError, match="The model has changed"):
            use()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda index: index.search(3), "queries"),
        (lambda index: index.search(["a", 3]), r"queries\[1\]"),
        (lambda index: index.search("a", -1), "top_k"),
        (lambda index: index.search("a", 1, 2.5), "num_candidates"),
        (lambda index: index.search("a", first_stage="words"), "first_stage must be one of"),
        (lambda index: index.search("a", rerank=False, query_weight=0.5), "query_weight is an option of reranking"),
        (lambda index: index.search("a", rerank="no"), "rerank must be True or False"),
        (lambda index: index.search("a", min_similarity=2), "min_similarity"),
        (lambda index: index.search("a", where=3), "where"),
        (lambda index: index.get("f0"), "ids must be a list"),
        (lambda index: index.add("text"), "documents must be a list"),
        (lambda index: index.add([], batch_size=0), "batch_size"),
    ],
)
def test_bad_arguments_are_refused(make: Make, tiny: E2Rank, facts: list[str], use: Callable, message: str):
    """Guards against a search for the letters of a word, and options that do nothing."""
    with pytest.raises(ValueError, match=message):
        use(make(tiny, facts[:1]))


def test_models_without_reranking_are_refused(bundled: E2Rank):
    """Guards against an index that fails at its first search."""
    plain = SentenceTransformer(modules=[bundled[0], bundled[1]])
    with pytest.raises(ValueError, match="must be able to rerank, got SentenceTransformer"):
        SearchIndex.create(None, plain, ["a"])
    with pytest.raises(ValueError, match="long_documents must be one of"):
        SearchIndex.create(None, bundled, ["a"], long_documents="whole")


def test_a_plain_sentence_transformer_of_a_saved_model(tiny: E2Rank, facts: list[str], tmp_path: Path):
    """Guards against an index for the package's own class only: a Hub model with remote code has the same methods."""
    tiny.save(str(tmp_path / "model"))
    plain = SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    hits = SearchIndex.create(None, plain, facts).search(QUERY, 5)
    expected = SearchIndex.create(None, tiny, facts).search(QUERY, 5)
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in expected]


def test_prompt_adapters_leave_an_index_valid(tiny: E2Rank, facts: list[str], tmp_path: Path):
    """Guards against vectors that must be made again when reranking is trained."""
    SearchIndex.create(tmp_path / "index", tiny, facts)
    adapted = with_prompt_adapter(tiny)
    index = SearchIndex.open(tmp_path / "index", adapted)
    hits = index.search(QUERY, 10)
    assert [hit["text"] for hit in hits] != [
        hit["text"] for hit in SearchIndex.create(None, tiny, facts).search(QUERY, 10)
    ]


def test_a_large_index_is_written_in_larger_parts(tiny: E2Rank, monkeypatch: pytest.MonkeyPatch):
    """Guards against a version for every few documents of a large index: each lists all files that are there."""
    monkeypatch.setattr(module, "PART_DOCUMENTS", 2)
    monkeypatch.setattr(module, "MOST_DOCUMENTS", 5)
    index = SearchIndex.create(None, tiny, [f"fact {row}" for row in range(300)])
    written: list[int] = []
    add = index.store.add
    monkeypatch.setattr(index.store, "add", lambda entries: (written.append(len(entries)), add(entries)))
    index.add([f"more {row}" for row in range(320)])
    assert written[0] == 3 and max(written) == 5 and sum(written) == 320
    assert written[:-1] == sorted(written[:-1])
