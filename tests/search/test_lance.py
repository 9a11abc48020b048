"""An index on disk: it comes back as it was, whatever stops a write, and what strangers give stays data."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lancedb.expr import col, lit

import e2rank_st.search.index as module
from e2rank_st import E2Rank, SearchIndex
from e2rank_st.data.files import DataError
from e2rank_st.search import lance
from e2rank_st.search.index import Changes
from tests.search import killed
from tests.toy import Disk, small_disk, train_a_step

QUERY = "how long do fleas live"
HOSTILE = [
    "'",
    '"',
    "''; DROP TABLE documents; --",
    "' OR '1'='1",
    "id' OR TRUE OR id = '",
    "\\",
    "\\'",
    "`",
    "%",
    "_",
    "*",
    "{}",
    "$1",
    "?",
    "NULL",
    "true",
    "1; DELETE FROM documents",
    "/* */",
    "-- ",
    "\n",
    "a\nb",
    "\t",
    "\x07",
    "\u202e abc",
    "猫 '🐈'",
    "é",
    "e\u0301",
    "\u200b",
    "x" * 1_000_000,
    "'" * 10_000,
    "../../etc/passwd",
    "s3://bucket",
    "<script>",
    "\ufeff",
    "0x00",
    "CAST(id AS INT)",
    "E'\\n'",
    "U&'d\\0061t'",
    "{{text}}",
    "%s",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a folder, größer %20"


@pytest.fixture
def index(path: Path, tiny: E2Rank, facts: list[str]) -> SearchIndex:
    documents = [{"id": f"f{row}", "text": text, "year": 2000 + row} for row, text in enumerate(facts)]
    return SearchIndex.create(path, tiny, documents)


def ids(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["id"] for hit in hits]


def test_an_index_comes_back_as_it_was(index: SearchIndex, path: Path, tiny: E2Rank):
    """Guards against vectors, fields or settings that change between two programs."""
    again = SearchIndex.open(path, tiny)
    assert again.search(QUERY, 10) == index.search(QUERY, 10)
    info = again.info()
    assert (info["documents"], info["fields"], info["dtype"], info["long_documents"]) == (
        10,
        {"year": "int64"},
        "float16",
        "cut",
    )
    assert "vectors" not in info
    index.add([{"id": "later", "text": "added by another program"}])
    assert len(again) == 11
    assert len(SearchIndex.open(path)) == 11
    with pytest.raises(ValueError, match="opened without a model"):
        SearchIndex.open(path).search(QUERY)


def test_plain_lance_reads_an_index(index: SearchIndex, path: Path, facts: list[str]):
    """Guards against documents and vectors that only this package can read again."""
    plain = pytest.importorskip("lance", reason="needs pylance").dataset(path / "documents.lance")
    rows = {row["id"]: row for row in plain.to_table(filter="year >= 2002").to_pylist()}
    assert {id_: (row["text"], row["year"]) for id_, row in rows.items()} == {
        f"f{row}": (text, 2000 + row) for row, text in enumerate(facts) if row >= 2
    }
    stored = index.store.get(list(rows))
    for id_, row in rows.items():
        np.testing.assert_allclose(np.float32(row["vector"]), stored[id_].vectors[0], atol=1e-3)


def test_half_precision_is_close(index: SearchIndex, tiny: E2Rank, facts: list[str]):
    """Guards against stored vectors that are not those of the model, in a type that halves the space."""
    (found,) = index.retrieve([QUERY], 10)
    stored = {part.entry.record.text: part.entry.vectors[0] for part in found}
    cosines = (np.stack([stored[text] for text in facts]) * tiny.encode_document(facts)).sum(axis=1)
    assert (cosines > 1 - 1e-6).all()
    assert index.store._table.schema.field("vector").type.value_type == "halffloat"


def test_fields_keep_their_kinds(index: SearchIndex, path: Path, tiny: E2Rank):
    """Guards against values that a column turns into others, and nested ones that are lost."""
    fields = {
        "flag": True,
        "count": -(2**63),
        "share": 0.1,
        "when": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
        "day": date(2026, 1, 2),
        "tags": ["a", "b'"],
        "nested": {"deep": [1, None, {"x": "ü"}]},
        "a name; with 'marks\"": "x",
        "Größe": 1.5,
        "numpy": np.float32(0.5),
    }
    index.add([{"id": "d", "text": "a", **fields, "missing": None, "nan": float("nan")}])
    assert SearchIndex.open(path).get(["d"])["d"].fields == {**fields, "numpy": 0.5}
    assert ids(index.search(QUERY, where={"a name; with 'marks\"": "x", "Größe": 1.5, "flag": True})) == ["d"]
    assert ids(index.search(QUERY, where="tags LIKE '%b''%' AND `Größe` > 1")) == ["d"]
    assert index.add([{"id": "d", "text": "a", **fields}]).unchanged == 1
    assert ids(index.search(QUERY, where={"day": date(2026, 1, 2)})) == ["d"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("year", "2020", "year: values of different kinds; got '2020' where the index has int64"),
        ("year", 2020.5, "got 2020.5 where the index has int64"),
        ("year", True, "got True where the index has int64"),
        ("fresh", 2**64, "fresh: cannot be stored; got int"),
        ("fresh", b"bytes", "fresh: cannot be stored; got bytes"),
        ("fresh", {"a": b"bytes"}, "cannot be stored; got bytes"),
        ("fresh", object(), "fresh: cannot be stored; got object"),
    ],
)
def test_fields_of_another_kind_are_refused(index: SearchIndex, field: str, value: Any, message: str):
    """Guards against a part of a batch that is written, and numbers that are cut to whole ones."""
    version = index.store.version
    with pytest.raises(DataError, match=message):
        index.add([{"id": "good", "text": "a"}, {"id": "bad", "text": "b", field: value}])
    assert (len(index), index.store.version) == (10, version)
    with pytest.raises(DataError, match="values of different kinds; got 'x' and 1"):
        index.add([{"text": "a", "mixed": 1}, {"text": "b", "mixed": "x"}])
    index.add([{"id": "n1", "text": "a", "number": 1}, {"id": "n2", "text": "b", "number": 1.5}])
    assert [record.fields["number"] for record in index.get(["n1", "n2"]).values()] == [1, 1.5]


def test_words_and_both(index: SearchIndex):
    """Guards against BM25 that misses titles, or candidates that are not those of the words."""
    index.add([{"id": "t", "title": "Xylophones", "text": "wood"}])
    assert ids(index.search("xylophone", first_stage="text")) == ["t"]
    hits = index.search("which cat has fleas", 10, first_stage="text", rerank=False)
    assert hits[0]["id"] == "f4"
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert index.search("", first_stage="text") == index.search("zzz", first_stage="text") == []
    both = index.search("xylophone", 11, first_stage="hybrid", rerank=False)
    assert len(both) == 11
    assert both[0]["id"] == "t"
    assert set(ids(index.search("xylophone", 11, first_stage="hybrid"))) == set(ids(both))
    assert ids(index.search("cat fleas", first_stage="hybrid", where={"year": 2006})) == ["f6"]


def test_approximate_search(index: SearchIndex, path: Path, tiny: E2Rank, monkeypatch: pytest.MonkeyPatch):
    """Guards against an index of vectors that loses documents, new ones above all, or is there and not used."""
    many = [{"id": f"m{row}", "text": f"fact {row} about {'fleas' if row % 2 else 'iron'}"} for row in range(300)]
    index.add(many)
    exact = index.search(QUERY, 20, rerank=False)
    for kind in ("int8", "rabitq", "exact"):
        index.optimize(kind)
        assert SearchIndex.open(path).info()["vector_index"] == kind
        found = index.search(QUERY, 20, rerank=False)
        assert len(set(ids(found)) & set(ids(exact))) >= 15
        scores = {hit["id"]: hit["score"] for hit in exact}
        assert all(hit["score"] == pytest.approx(scores[hit["id"]], abs=1e-6) for hit in found if hit["id"] in scores)
    monkeypatch.setattr(lance, "APPROXIMATE_FROM", 311)
    index.optimize()
    assert index.info()["vector_index"] == "exact"
    index.add([{"id": "late", "text": QUERY}])
    assert index.info()["vector_index"] == "int8"
    index.add([{"id": "later", "text": QUERY + "?"}])
    assert "later" in ids(index.search(QUERY + "?", 3, rerank=False))
    assert len(index.search(QUERY, 3, 3, where={"id": ["f1", "f2", "m299"]})) == 3
    with pytest.raises(ValueError, match="vector_index must be one of"):
        index.optimize("hnsw")


def test_filters(index: SearchIndex):
    """Guards against conditions that are read otherwise than LanceDB does, and errors that say nothing."""
    expected = ["f7", "f8", "f9"]
    for where in ("year > 2006", col("year") > lit(2006), "\"year\" > 2006 AND text != ''"):
        assert sorted(ids(index.search(QUERY, 10, where=where))) == expected
    for where, message in [
        ("year >", "where='year >' is not a condition on this index: .*Expected: an expression"),
        ("yeer > 1", "No field named yeer"),
        ({"year": [1, "x"]}, "is not a condition on this index: Cast error: Cannot cast string 'x'"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search(QUERY, where=where)


def test_what_strangers_give_is_data(path: Path, tiny: E2Rank):
    """Guards against an id, a value or a query that ends a string and becomes a part of a command."""
    values = [value for value in HOSTILE if value.strip()]
    documents = [{"id": value, "text": "a", "kind": value} for value in values]
    index = SearchIndex.create(path, tiny, documents)
    assert len(index) == len(values)
    assert index.get(values).keys() == set(values)
    for value in values:
        assert ids(index.search("a", len(values), where={"kind": value}, rerank=False)) == [value]
        assert ids(index.search("a", len(values), where={"id": [value, "none"]}, rerank=False)) == [value]
    for value in (value for value in HOSTILE if len(value) < 100_000):
        index.search(value, 3, first_stage="hybrid", rerank=False)
        index.search(value, 3, first_stage="text", rerank=False)
    for number, value in enumerate(values, 1):
        index.delete([value])
        assert len(index) == len(values) - number


def test_a_different_model_is_refused(index: SearchIndex, path: Path, tiny: E2Rank, facts: list[str]):
    """Guards against a search with vectors of two models, also when they have the same length."""
    other = copy.deepcopy(tiny)
    train_a_step(other, 1e-2)
    for use in (lambda: SearchIndex.open(path, other), lambda: SearchIndex.create(path, other, ["a"])):
        with pytest.raises(ValueError, match=r"differs in weights \('\w+' then, '\w+' now\)"):
            use()
    assert len(SearchIndex.open(path, other, force=True).search(QUERY)) == 10
    for settings in ({"dtype": "float32"}, {"long_documents": "passages"}):
        with pytest.raises(ValueError, match="Give another path"):
            SearchIndex.create(path, tiny, facts, **settings)


def test_creating_again_goes_on(index: SearchIndex, path: Path, tiny: E2Rank, monkeypatch: pytest.MonkeyPatch):
    """Guards against a notebook whose cell makes everything anew at each run."""
    monkeypatch.setattr(tiny, "encode_document", None)
    again = SearchIndex.open(path)
    monkeypatch.undo()
    assert len(SearchIndex.create(path, tiny, [{"id": "f0", "text": again.get(["f0"])["f0"].text}])) == 10


def test_a_full_disk_costs_nothing(index: SearchIndex, path: Path, tiny: E2Rank, tmp_path: Path):
    """Guards against an index that a failed write leaves unreadable, and messages with the source of a library."""
    before = index.search(QUERY, 10)
    more = [{"id": f"m{number}", "text": f"{number} " + "x" * 50} for number in range(200)]
    with small_disk(3000), pytest.raises(OSError, match=r"cannot be written: .*File too large.*Make room") as caught:
        index.add(more)
    assert ".rs:" not in str(caught.value)
    assert SearchIndex.open(path, tiny).search(QUERY, 10) == before
    assert index.add(more).embedded == 200
    for place in ("/proc/none", tmp_path / "file" / "index"):
        (tmp_path / "file").write_text("x")
        with pytest.raises(OSError, match="cannot be used"):
            SearchIndex.create(place, tiny, ["a"])
    with pytest.raises(FileNotFoundError, match="There is no index in"):
        SearchIndex.open(tmp_path / "none", tiny)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kilobytes", [8, 24, 250])
def test_after_a_full_disk_the_same_call_goes_on(
    kilobytes: int, tiny: E2Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guards against a disk that is full at the first file, between the table and its words, and in a later write."""
    monkeypatch.setattr(module, "PART_DOCUMENTS", 20)
    given = [{"id": f"d{row}", "text": f"fact {row} about {str(row) * 50}"} for row in range(300)]
    place = tmp_path / "disk" / "index"
    with Disk(tmp_path / "disk", kilobytes * 1024) as disk:
        with pytest.raises(OSError) as caught:
            SearchIndex.create(place, tiny, given)
        message = str(caught.value)
        assert message.startswith(f"The index in {place} cannot be written: ")
        assert "No space left on device (os error 28). Nothing in it is lost. Make room," in message
        written = 0
        if kilobytes > 8:
            kept = SearchIndex.open(place, tiny)
            written = len(kept)
            assert bool(written) == (kilobytes > 24), "the premise: two sizes are too small for a document"
            assert kept.get([f"d{row}" for row in range(300)]).keys() == {f"d{row}" for row in range(written)}
            for first_stage in ("vector", "text"):
                assert len(kept.search("fact about", 5, first_stage=first_stage)) == min(5, written)
        disk.grow(2**26)
        index = SearchIndex.create(place, tiny)
        assert index.add(given) == Changes(300 - written, 0, written)
        rows = SearchIndex.open(place).store._table.to_arrow()["id"].to_pylist()
        assert sorted(rows) == sorted(document["id"] for document in given)
        assert {name for made in index.store._table.list_indices() for name in made.columns} == {"title", "text"}


def test_work_at_the_end_is_made_up_for(path: Path, tiny: E2Rank, monkeypatch: pytest.MonkeyPatch):
    """Guards against an index that stays slow, because a stop came after the last document."""

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lance, "APPROXIMATE_FROM", 300)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lance.LanceStore, "optimize", stopped)
        SearchIndex.create(path, tiny, [f"fact {row}" for row in range(300)])
    assert SearchIndex.open(path).info()["vector_index"] == "exact"
    again = SearchIndex.create(path, tiny, [f"fact {row}" for row in range(300)])
    assert again.info()["vector_index"] == "int8"


def test_a_damaged_file_is_told(index: SearchIndex, path: Path, tiny: E2Rank):
    """Guards against results from half a file, and an index that is lost as a whole."""
    version = index.store.version
    before = index.search(QUERY, 10)
    files = set(path.glob("documents.lance/data/*"))
    index.add([{"id": "late", "text": "a"}])
    (fresh,) = set(path.glob("documents.lance/data/*")) - files
    content = fresh.read_bytes()
    fresh.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"cannot be used.*earlier version may open"):
        SearchIndex.open(path, tiny).search(QUERY, 20)
    old = SearchIndex.open(path, tiny, version=version)
    assert old.search(QUERY, 10) == before
    with pytest.raises(OSError, match="specific version"):
        old.add(["b"])


def test_threads_write_and_search(index: SearchIndex, path: Path, tiny: E2Rank):
    """Guards against two writers that both add an id, and a search that sees half a write."""
    documents = [{"id": f"t{number}", "text": f"thread {number}"} for number in range(60)]
    expected = index.search(QUERY, 3, where="year > 2000")

    def work(number: int) -> None:
        SearchIndex.open(path, tiny).add(documents) if number % 2 else index.add(documents[::-1])
        assert index.search(QUERY, 3, where="year > 2000") == expected

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    rows = index.store._table.to_arrow()["id"].to_pylist()
    assert len(rows) == len(set(rows)) == 70


def test_another_writer_is_waited_for(index: SearchIndex, path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against waiting for ever."""
    monkeypatch.setattr(lance, "WAIT_S", 0.1)
    with index.store._writing():
        script = (
            "import sys\nfrom e2rank_st.search import lance\nlance.WAIT_S = 0.1\n"
            "lance.LanceStore.open(sys.argv[1]).delete(['f0'])"
        )
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert "Another program has been writing" in done.stderr
    assert len(index) == 10


def is_each_there_once(path: Path, rounds: int, model: E2Rank) -> None:
    index = SearchIndex.open(path, model)
    rows = index.store._table.to_arrow()["id"].to_pylist()
    documents = killed.documents(15 * rounds)
    assert sorted(rows) == sorted(document["id"] for document in documents)
    assert {id_: record.fields["number"] for id_, record in index.get(rows).items()} == {
        document["id"]: document["number"] for document in documents
    }
    vectors = model.encode_document([document["text"] for document in documents])
    stored = index.store.get([document["id"] for document in documents])
    for document, vector in zip(documents, vectors, strict=True):
        np.testing.assert_allclose(stored[document["id"]].vectors[0] @ vector, 1, atol=1e-5)


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_lose_nothing(rounds: int, checkpoint: Path, tiny: E2Rank, path: Path):
    """Guards against documents that are lost, doubled, or embedded again after a kill at a random moment."""
    path.parent.mkdir(exist_ok=True)
    command = [sys.executable, killed.__file__, str(checkpoint), str(path), str(rounds)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    is_each_there_once(path, rounds, tiny)
    embedded = (path.parent / "log").read_text().splitlines()
    # Each kill may cost the part that was at work.
    assert len(embedded) <= 15 * rounds + rounds * killed.PART_DOCUMENTS
