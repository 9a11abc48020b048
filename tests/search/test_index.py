"""Index: exact search over stored vectors, and a folder that keeps them."""

from pathlib import Path

import numpy as np
import pytest

import e2rank_st.search.exact as exact_module
from e2rank_st import E2Rank
from e2rank_st.search.index import Index

AXES = Index(["x", "y", "xy"], np.array([[1, 0], [0, 1], [3, 3]], np.float32))
STRANGE = [
    "",
    "two\nlines",
    "\u2028 ends some lines",
    "\N{FLEUR-DE-LIS} 猫",
    '"quotes"\t\\',
    "half a pair \ud800",
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
        (["a", "b"], [[1, 0], [np.nan, 1]], "Embedding 1 holds NaN"),
        (["a", None], np.ones((2, 2)), "Text 1 is a NoneType"),
        ("ab", np.ones((2, 2)), "one string"),
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
    with pytest.raises(ValueError, match="top_k=-1"):
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
    ("name", "contents"),
    [
        ("embeddings.safetensors", ()),
        ("texts.jsonl", (b'"one text"\n', b'"\xff"\n')),
        ("index.json", (b'{"format": 2}',)),
    ],
)
def test_damaged_index_is_refused(tmp_path: Path, name: str, contents: tuple[bytes, ...]):
    """Guards against half an index that answers, and against an error that does not name the folder or the file."""
    AXES.save(tmp_path / "index")
    file = tmp_path / "index" / name
    for content in (file.read_bytes()[:-5], *contents):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"index in .*; build and save it again"):
            Index.load(tmp_path / "index")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Index.load(tmp_path / "index")


def test_agrees_with_the_model_that_built_it(tiny: E2Rank, bundled: E2Rank, facts: list[str]):
    """Guards against vectors of another model, which give scores and no error where the dimension is the same."""
    index = Index.build(tiny, facts)
    assert index.agrees_with(tiny)
    assert not index.agrees_with(bundled)
    others = Index(facts, np.roll(index.embeddings, 1, axis=0))
    assert not others.agrees_with(tiny)
