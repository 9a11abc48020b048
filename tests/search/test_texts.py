"""TextVectors: exact search over stored vectors, and a folder that keeps them."""

import json
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
from e2rank_st.search.folder import _signed
from e2rank_st.search.texts import TextVectors
from tests.toy import small_disk

AXES = TextVectors(["x", "y", "xy"], np.array([[1, 0], [0, 1], [3, 3]], np.float32))
STRANGE = [
    "",
    "two\nlines",
    "\u2028 ends some lines",
    "\N{FLEUR-DE-LIS} 猫",
    '"quotes"\t\\',
]


def random_index(documents: int = 500, dimension: int = 16, seed: int = 0) -> TextVectors:
    vectors = np.random.default_rng(seed).normal(size=(documents, dimension)).astype(np.float32)
    return TextVectors([f"text {row}" for row in range(documents)], vectors)


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
    scores, ids = TextVectors(["text"] * 1000, vectors).retrieve(vectors[3:4], top_k=50)
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
    index = TextVectors(texts, vectors)
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
        TextVectors(texts, vectors)


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
    index = TextVectors.build(tiny, facts + facts[::-1])
    assert calls == [facts]
    np.testing.assert_allclose(index.embeddings, encode(facts + facts[::-1]), atol=1e-6)
    np.testing.assert_array_equal(index.embeddings[:10], index.embeddings[:9:-1])
    for wrong in ([], ["a", 1], "text", [("a", "b")]):  # a tuple would be embedded as a pair of texts
        with pytest.raises(ValueError, match=r"string|no texts"):
            TextVectors.build(tiny, wrong)


def test_saved_index_loads_as_it_was(tmp_path: Path):
    """Guards against texts that a line format breaks apart, and against vectors that change a bit with each round."""
    index = TextVectors(STRANGE, np.random.default_rng(0).normal(size=(len(STRANGE), 7)))
    for turn in range(2):
        index.save(tmp_path / str(turn))
        loaded = TextVectors.load(tmp_path / str(turn))
        assert loaded.texts == index.texts
        np.testing.assert_array_equal(loaded.embeddings, index.embeddings)
        index = loaded


def test_failed_save_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against an index that is lost because its successor did not fit on the disk."""
    AXES.save(tmp_path / "index")

    monkeypatch.setattr("e2rank_st.search.folder.save_file", None)
    with pytest.raises(TypeError):
        random_index().save(tmp_path / "index")
    assert TextVectors.load(tmp_path / "index").texts == AXES.texts
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
    index = TextVectors.build(tiny, make(facts))
    assert index.texts == facts
    assert {type(text) for text in index.texts} == {str}


def test_full_disk_leaves_the_old_index(tmp_path: Path):
    """Guards against a traceback of safetensors, and an index that is lost because its successor did not fit."""
    AXES.save(tmp_path / "index")
    with pytest.raises(OSError, match=r"Could not write .*index: .* Is the disk full\?$"), small_disk(10_000):
        random_index().save(tmp_path / "index")
    with pytest.raises(OSError, match="too large"), small_disk(40_000):  # the vectors fit, the texts do not
        TextVectors(["text " * 10_000] * 2, np.eye(2)).save(tmp_path / "index")
    assert TextVectors.load(tmp_path / "index").texts == AXES.texts
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_readers_see_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a reader that finds no folder, or the texts of one version and the vectors of the next."""
    monkeypatch.setattr("os.fsync", lambda file: None)  # it only takes time here
    versions = [TextVectors([f"{name} {row}" for row in range(20)], np.eye(20)) for name in "ab"]
    versions[0].save(tmp_path / "index")
    done, read = threading.Event(), []

    def load() -> None:
        while not done.is_set():
            read.append("".join(sorted({text[0] for text in TextVectors.load(tmp_path / "index").texts})))

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
    TextVectors.build(tiny, facts).save(tmp_path / "index")
    file = tmp_path / "index" / name
    content, draw = file.read_bytes(), random.Random(0)
    damaged = [content[:-1], content[: len(content) // 2], b"", content + b"\n", content[1:]]
    for _ in range(150):
        place = draw.randrange(len(content))
        damaged.append(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    for bytes_ in damaged:
        file.write_bytes(bytes_)
        with pytest.raises(ValueError, match=r"index in .*; build and save it again"):
            TextVectors.load(tmp_path / "index")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        TextVectors.load(tmp_path / "index")
    file.write_bytes(content)
    TextVectors.load(tmp_path / "index")


@pytest.mark.parametrize("content", [b'{"format": 1, "documents": 3, "dimension": 2}', b'{"format": 99}'])
def test_other_formats_are_refused(tmp_path: Path, content: bytes):
    """Guards against an index of an earlier version that is called damaged, or read without its checks."""
    AXES.save(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"has the format \d+, and this version reads 2; build and save it again"):
        TextVectors.load(tmp_path / "index")


@pytest.mark.parametrize("change", [{"sha256": {}}, {"sha256": []}, {"format": True}, {"format": 2.0}])
def test_a_manifest_of_an_unknown_form(tmp_path: Path, change: dict[str, object]):
    """Guards against a stranger's folder whose manifest is signed, but leaves out what is to be checked."""
    AXES.save(tmp_path / "index")
    file = tmp_path / "index" / "index.json"
    manifest = json.loads(file.read_text()) | change
    del manifest["manifest_sha256"]
    file.write_bytes(_signed(manifest))
    with pytest.raises(ValueError, match=r"unknown form|has the format"):
        TextVectors.load(tmp_path / "index")


def test_a_users_own_file_is_kept(tmp_path: Path):
    """Guards against an index that takes the place of somebody's data, which has the name of one of its files."""
    (tmp_path / "texts.jsonl").write_text("my own data")
    with pytest.raises(ValueError, match="holds other files"):
        AXES.save(tmp_path)
    assert (tmp_path / "texts.jsonl").read_text() == "my own data"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_vectors_of_any_float_type(tiny: E2Rank, facts: list[str], dtype: torch.dtype):
    """Guards against an error of NumPy for types that models and databases use."""
    vectors = torch.from_numpy(tiny.encode_document(facts))
    index = TextVectors(facts, vectors.to(dtype))
    np.testing.assert_allclose(index.embeddings, vectors, atol=5e-3)
    assert index.retrieve(vectors[:1].to(dtype), 1)[1].tolist() == [[0]]
