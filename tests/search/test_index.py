"""Index: exact search over stored vectors, and a folder that keeps them."""

import copy
import json
import pickle
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import e2rank_st.search.exact as exact_module
from e2rank_st import E2Rank
from e2rank_st.modeling_e2rank import E2RankPooling
from e2rank_st.search.folder import _signed
from e2rank_st.search.index import Index
from tests.toy import small_disk, train_a_step, with_adapter

AXES = Index(["x", "y", "xy"], np.array([[1, 0], [0, 1], [3, 3]], np.float32))
STRANGE = [
    "",
    "two\nlines",
    "\u2028 ends some lines",
    "\N{FLEUR-DE-LIS} 猫",
    '"quotes"\t\\',
]


def random_index(documents: int = 500, dimension: int = 16, seed: int = 0) -> Index:
    vectors = np.random.default_rng(seed).normal(size=(documents, dimension)).astype(np.float32)
    return Index([f"text {row}" for row in range(documents)], vectors)


def test_scores_are_cosines():
    """Guards against dot products of vectors that are not of unit length: by hand, cos((2, 0), (3, 3)) = 1/√2."""
    scores, ids = AXES.retrieve(np.array([[2.0, 0.0], [0.0, -1.0]]), top_k=3)
    np.testing.assert_array_equal(ids, [[0, 2, 1], [0, 2, 1]])
    np.testing.assert_allclose(scores, [[1, 0.5**0.5, 0], [0, -(0.5**0.5), -1]], atol=1e-7)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)


def test_results_are_exact_and_do_not_depend_on_the_call(monkeypatch: pytest.MonkeyPatch):
    """Guards against a lost document, and scores that change with the other queries in a call, or with its chunks."""
    index, queries = random_index(), random_index(20, seed=1).embeddings
    cosines = queries.astype(np.float64) @ index.embeddings.astype(np.float64).T
    whole = index.retrieve(queries, top_k=10)
    np.testing.assert_array_equal(whole[1], np.argsort(-cosines, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(whole[0], -np.sort(-cosines, axis=1)[:, :10], atol=1e-7)
    single = [index.retrieve(query[None], top_k=10) for query in queries]
    monkeypatch.setattr(exact_module, "DOCUMENTS_AT_ONCE", 130)
    monkeypatch.setattr(exact_module, "SCORES_AT_ONCE", 260)  # two queries at a time
    chunked = index.retrieve(queries, top_k=10)
    for part in (0, 1):
        np.testing.assert_array_equal(whole[part], chunked[part])
        np.testing.assert_array_equal(whole[part], np.concatenate([found[part] for found in single]))


def test_equal_documents_keep_their_order():
    """Guards against ties in the random order of a matrix product's rounding or an unstable sort."""
    vectors = random_index(1000, 384).embeddings
    same = np.arange(3, 1000, 7)
    vectors[same] = vectors[3]
    scores, ids = Index(["text"] * 1000, vectors).retrieve(vectors[3:4], top_k=50)
    np.testing.assert_array_equal(ids[0], same[:50])
    assert len(set(scores[0].tolist())) == 1


def test_top_k():
    """Guards against an error, or padding, where more is asked for than there is."""
    for top_k, found in ((0, 0), (1, 1), (3, 3), (100, 3)):
        assert all(part.shape == (2, found) for part in AXES.retrieve(np.eye(2), top_k))
        assert all(part.shape == (0, found) for part in AXES.retrieve(np.empty((0, 2)), top_k))


def test_callers_objects_stay_as_they_are():
    """Guards against normalising the caller's matrix in place, and against a list that is shared with him."""
    texts, vectors = ["a", "b"], np.full((2, 2), 5, np.float32)
    index = Index(texts, vectors)
    texts.append("c")
    assert (vectors == 5).all()
    assert index.texts == ["a", "b"]


@pytest.mark.parametrize(
    ("texts", "vectors", "message"),
    [
        (["a"], np.ones((2, 2)), "1 texts and 2 embeddings"),
        (["a"], np.ones(2), r"shape \(2,\)"),
        (["a", "b"], [[1, 0], [np.nan, 1]], "NaN.* in row 1"),
        (["a", None], np.ones((2, 2)), r"texts\[1\].*NoneType"),
        (["a", "half \ud800"], np.ones((2, 2)), r"texts\[1\] holds half of a surrogate pair"),
        ("ab", np.ones((2, 2)), "texts must be a list of strings, got str"),
        (b"ab", np.ones((2, 2)), "texts must be a list of strings, got bytes"),
        ({"a": 1, "b": 2}, np.ones((2, 2)), "texts must be a list of strings, got dict"),
        ({"a", "b"}, np.ones((2, 2)), "texts must be a list of strings, got set"),
        (np.array("ab"), np.ones((2, 2)), "texts must be a list of strings, got ndarray"),
        (np.array([["a", "b"]]), np.ones((2, 2)), r"texts\[0\].*ndarray"),
        (torch.tensor(1), np.ones((1, 2)), "texts must be a list of strings, got Tensor"),
        (torch.ones(2), np.ones((2, 2)), r"texts\[0\].*Tensor"),
        (3, np.ones((2, 2)), "texts must be a list of strings, got int"),
        (pd.DataFrame({"text": ["a", "b"]}), np.ones((2, 2)), "the table DataFrame"),
        (pa.table({"text": ["a", "b"]}), np.ones((2, 2)), "the table Table"),
        (pd.Series(["a", None]), np.ones((2, 2)), r"texts\[1\].*float: nan"),
        ([], np.ones((0, 2)), "no texts"),
    ],
)
def test_bad_parts_are_refused(texts: list, vectors: np.ndarray, message: str):
    """Guards against an index that searches silently wrong."""
    with pytest.raises(ValueError, match=message):
        Index(texts, vectors)


def test_bad_queries_are_refused():
    """Guards against vectors of another model, and against a negative count that Python would read as a slice."""
    with pytest.raises(ValueError, match="dimension 3 for an index of dimension 2"):
        AXES.retrieve(np.ones((1, 3)), 1)
    with pytest.raises(ValueError, match=r"top_k.*got -1"):
        AXES.retrieve(np.ones((1, 2)), -1)


def test_build_embeds_each_text_once(tiny: E2Rank, facts: list[str], monkeypatch: pytest.MonkeyPatch):
    """Guards against duplicates that cost time, and against rows in another order than the texts."""
    calls, encode = [], tiny.encode_document
    monkeypatch.setattr(tiny, "encode_document", lambda texts, **kwargs: calls.append(texts) or encode(texts, **kwargs))
    index = Index.build(tiny, facts + facts[::-1])
    assert calls == [facts]
    np.testing.assert_allclose(index.embeddings, encode(facts + facts[::-1]), atol=1e-6)
    np.testing.assert_array_equal(index.embeddings[:10], index.embeddings[:9:-1])
    for wrong in ([], ["a", 1], "text", [("a", "b")]):  # a tuple would be embedded as a pair of texts
        with pytest.raises(ValueError, match=r"string|no texts"):
            Index.build(tiny, wrong)


def test_saved_index_loads_as_it_was(tmp_path: Path):
    """Guards against texts that a line format breaks apart, and against vectors that change a bit with each round."""
    index = Index(STRANGE, np.random.default_rng(0).normal(size=(len(STRANGE), 7)))
    for turn in range(2):
        index.save(tmp_path / str(turn))
        loaded = Index.load(tmp_path / str(turn))
        assert loaded.texts == index.texts
        np.testing.assert_array_equal(loaded.embeddings, index.embeddings)
        index = loaded


def test_failed_save_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against an index that is lost because its successor did not fit on the disk."""
    AXES.save(tmp_path / "index")

    monkeypatch.setattr("e2rank_st.search.folder.save_file", None)
    with pytest.raises(TypeError):
        random_index().save(tmp_path / "index")
    assert Index.load(tmp_path / "index").texts == AXES.texts
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_folder_with_other_files_is_refused(tmp_path: Path):
    """Guards against a save that deletes the user's own files."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="other files"):
        AXES.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "make",
    [
        tuple,
        iter,
        lambda texts: (text for text in texts),
        np.array,
        lambda texts: np.array(texts, object),
        pd.Series,
        lambda texts: pd.Series(texts, index=range(9, -1, -1)),
        pa.array,
        lambda texts: pa.chunked_array([texts[:3], texts[3:]]),
        lambda texts: dict.fromkeys(range(10)) and dict(enumerate(texts)).values(),
    ],
)
def test_build_takes_texts_as_databases_give_them(tiny: E2Rank, facts: list[str], make: Callable[[list[str]], Any]):
    """Guards against "Got no texts" for a generator, and strings of NumPy and Arrow in results and files."""
    index = Index.build(tiny, make(facts))
    assert index.texts == facts
    assert {type(text) for text in index.texts} == {str}


def test_full_disk_leaves_the_old_index(tmp_path: Path):
    """Guards against a traceback of safetensors, and an index that is lost because its successor did not fit."""
    AXES.save(tmp_path / "index")
    with pytest.raises(OSError, match=r"Could not write .*index: .* Is the disk full\?$"), small_disk(10_000):
        random_index().save(tmp_path / "index")
    with pytest.raises(OSError, match="too large"), small_disk(40_000):  # the vectors fit, the texts do not
        Index(["text " * 10_000] * 2, np.eye(2)).save(tmp_path / "index")
    assert Index.load(tmp_path / "index").texts == AXES.texts
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_readers_see_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a reader that finds no folder, or the texts of one version and the vectors of the next."""
    monkeypatch.setattr("os.fsync", lambda file: None)  # it only takes time here
    versions = [Index([f"{name} {row}" for row in range(20)], np.eye(20)) for name in "ab"]
    versions[0].save(tmp_path / "index")
    done, read = threading.Event(), []

    def load() -> None:
        while not done.is_set():
            read.append("".join(sorted({text[0] for text in Index.load(tmp_path / "index").texts})))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(load)
        for turn in range(200):
            versions[turn % 2].save(tmp_path / "index")
        done.set()
        reader.result()
    assert set(read) == {"a", "b"}


@pytest.mark.parametrize("name", ["index.json", "embeddings.safetensors", "texts.jsonl"])
def test_every_wrong_byte_is_found(tiny: E2Rank, facts: list[str], tmp_path: Path, name: str):
    """Guards against half an index that answers, and against an error that does not name the folder and the cure."""
    Index.build(tiny, facts).save(tmp_path / "index")
    file = tmp_path / "index" / name
    content, draw = file.read_bytes(), random.Random(0)
    damaged = [content[:-1], content[: len(content) // 2], b"", content + b"\n", content[1:]]
    for _ in range(150):
        place = draw.randrange(len(content))
        damaged.append(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    for bytes_ in damaged:
        file.write_bytes(bytes_)
        with pytest.raises(ValueError, match=r"index in .*; build and save it again"):
            Index.load(tmp_path / "index")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Index.load(tmp_path / "index")
    file.write_bytes(content)
    Index.load(tmp_path / "index")


@pytest.mark.parametrize("content", [b'{"format": 1, "documents": 3, "dimension": 2}', b'{"format": 99}'])
def test_other_formats_are_refused(tmp_path: Path, content: bytes):
    """Guards against an index of an earlier version that is called damaged, or read without its checks."""
    AXES.save(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"has the format \d+, and this version reads 2; build and save it again"):
        Index.load(tmp_path / "index")


@pytest.mark.parametrize("change", [{"sha256": {}}, {"sha256": []}, {"maker": "x"}, {"format": True}, {"format": 2.0}])
def test_a_manifest_of_an_unknown_form(tmp_path: Path, change: dict[str, object]):
    """Guards against a stranger's folder whose manifest is signed, but leaves out what is to be checked."""
    AXES.save(tmp_path / "index")
    file = tmp_path / "index" / "index.json"
    manifest = json.loads(file.read_text()) | change
    del manifest["manifest_sha256"]
    file.write_bytes(_signed(manifest))
    with pytest.raises(ValueError, match=r"unknown form|has the format"):
        Index.load(tmp_path / "index")


def test_a_users_own_file_is_kept(tmp_path: Path):
    """Guards against an index that takes the place of somebody's data, which has the name of one of its files."""
    (tmp_path / "texts.jsonl").write_text("my own data")
    with pytest.raises(ValueError, match="holds other files"):
        AXES.save(tmp_path)
    assert (tmp_path / "texts.jsonl").read_text() == "my own data"


def changed(model: E2Rank, change: Callable[[E2Rank], object]) -> E2Rank:
    model = copy.deepcopy(model)
    change(model)
    return model


def shorten(model: E2Rank) -> None:
    model.max_seq_length = 5


def pool_by_mean(model: E2Rank) -> None:
    model[1] = E2RankPooling(32, "mean")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (shorten, "max_seq_length"),
        (train_a_step, "weights"),
        (pool_by_mean, "E2RankPooling.pooling_mode_mean_tokens"),
        (lambda model: model.prompts.update(document="passage: "), "document prompt"),
    ],
)
def test_search_refuses_a_model_that_did_not_make_the_index(
    tiny: E2Rank, facts: list[str], tmp_path: Path, change: Callable[[E2Rank], object], named: str
):
    """Guards against vectors of another model, which give scores and no error where the dimension is the same."""
    made = Index.build(tiny, facts)
    made.save(tmp_path / "index")
    other = changed(tiny, change)
    for index in (made, Index.load(tmp_path / "index")):
        index_hits = tiny.search("fleas", index)
        with pytest.raises(ValueError, match=f"differs in .*{named}.*Build the index again"):
            other.search("fleas", index)
        assert tiny.search("fleas", index) == index_hits
    other.search("fleas", Index.build(other, facts))


def test_search_notices_a_model_that_changes(tiny: E2Rank, facts: list[str]):
    """Guards against a model that was right at the first search and is trained after it."""
    for index in (Index.build(tiny, facts), Index(facts, tiny.encode_document(facts))):
        model = copy.deepcopy(tiny)
        model.search("fleas", index)
        train_a_step(model, rate=1e-2)
        with pytest.raises(ValueError, match="does not give the vectors"):
            model.search("fleas", index)


def test_search_takes_a_model_that_gives_the_same_vectors(tiny: E2Rank, facts: list[str]):
    """Guards against an index that must be built again although nothing that it holds would change."""
    index = Index.build(tiny, facts)
    for change in (
        lambda model: model.prompts.update(query="another: "),
        lambda model: model.replace_listwise(num_prompt_documents=2),
        lambda model: setattr(model, "max_seq_length", 500),  # no text is as long
        lambda model: model.double(),
        lambda model: model.bfloat16(),
    ):
        assert changed(tiny, change).search("fleas", index)
    assert with_adapter(tiny).search("fleas", index)  # its weights are named in another way


def test_search_refuses_vectors_of_no_model(tiny: E2Rank, bundled: E2Rank, shipped: E2Rank, facts: list[str]):
    """Guards against random vectors, and against a bundled model that refuses those of its base, which are its own."""
    random_vectors = Index(facts, np.random.default_rng(0).normal(size=(len(facts), 32)))
    with pytest.raises(ValueError, match="nothing is known about the model"):
        tiny.search("fleas", random_vectors)
    for index in (Index.build(bundled, facts), Index(facts, bundled.encode_document(facts))):
        hits, found = shipped.search("fleas", index), bundled.search("fleas", index)
        assert {hit["corpus_id"] for hit in hits} == {hit["corpus_id"] for hit in found}
        assert {hit["retrieval_score"] for hit in hits} == {hit["retrieval_score"] for hit in found}
    assert not index.agrees_with(tiny)  # another dimension


def test_given_vectors_are_checked_once(tiny: E2Rank, facts: list[str], monkeypatch: pytest.MonkeyPatch):
    """Guards against a check that costs a forward pass at each search, also from several threads."""
    index, calls = Index(facts, tiny.encode_document(facts)), []
    encode = E2Rank.encode_document
    monkeypatch.setattr(E2Rank, "encode_document", lambda *args, **options: calls.append(1) or encode(*args, **options))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: index.agrees_with(tiny), range(8)))
    assert len(calls) == 1
    assert pickle.loads(pickle.dumps(index)).agrees_with(copy.deepcopy(tiny))
    assert len(calls) == 2
    built = Index.build(tiny, facts)
    assert built.agrees_with(tiny) and len(calls) == 3  # the one that built it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_vectors_of_any_float_type(tiny: E2Rank, facts: list[str], dtype: torch.dtype):
    """Guards against an error of NumPy for types that models and databases use."""
    vectors = torch.from_numpy(tiny.encode_document(facts))
    index = Index(facts, vectors.to(dtype))
    np.testing.assert_allclose(index.embeddings, vectors, atol=5e-3)
    assert tiny.search("fleas", index)
