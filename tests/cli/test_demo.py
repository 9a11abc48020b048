"""Demo: two ranks of the same documents, and an index that is kept between calls while it is valid."""

import copy
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.cli.demo import docstring_index
from e2rank_st.data.docstrings import QUERIES, Docstring, collect
from e2rank_st.search.maker import PROBES
from tests import ROOT
from tests.toy import small_disk

QUERY = "how long do fleas live"


def docstrings(texts: Sequence[str]) -> list[Docstring]:
    return [Docstring(f"module.f{row}", text) for row, text in enumerate(texts)]


def texts_of(index: SearchIndex) -> list[str]:
    return [hit["text"] for hit in index.search("a", top_k=100, rerank=False)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "e2rank-st"


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents that are embedded from here on, without those that only test a model."""
    texts: list[str] = []
    encode = E2Rank.encode_document

    def spy(self: E2Rank, given: list[str], **options: object) -> np.ndarray:
        texts.extend(text for text in given if text not in PROBES)
        return encode(self, given, **options)

    monkeypatch.setattr(E2Rank, "encode_document", spy)
    return texts


def test_hits_hold_both_rankings(bundled: E2Rank, facts: list[str]):
    """Guards against ranks and scores that are mixed up, and against a demo that embeds its candidates again."""
    passes, library = [], docstrings(facts)
    index = docstring_index(bundled, library, keep=False)
    hook = bundled[0].register_forward_hook(lambda module, args, output: passes.append(len(args[0]["input_ids"])))
    hits = index.search(QUERY, top_k=4, num_candidates=6)
    hook.remove()
    assert passes == [1, 1]
    documents = [docstring.document for docstring in library]
    cosines = (bundled.encode_document(documents) @ bundled.encode_query(QUERY)).tolist()
    best = sorted(range(10), key=lambda row: -cosines[row])[:6]
    assert [hit["id"] for hit in hits] == [library[best[hit["retrieval_rank"] - 1]].name for hit in hits]
    expected = [cosines[best[hit["retrieval_rank"] - 1]] for hit in hits]
    np.testing.assert_allclose([hit["retrieval_score"] for hit in hits], expected, atol=1e-6)
    reranked = bundled.rerank(QUERY, [documents[row] for row in best], top_k=4)
    assert [hit["id"] for hit in hits] == [library[best[hit["corpus_id"]]].name for hit in reranked]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in reranked], atol=1e-5)


def test_index_is_kept(bundled: E2Rank, facts: list[str], cache: Path, embedded: list[str], caplog):
    """Guards against a second run that embeds again, and against one broken file that stops the demo or is hidden."""
    library = docstrings(facts)
    hits = docstring_index(bundled, library).search(QUERY)
    assert len(embedded) == 10
    assert docstring_index(bundled, library).search(QUERY) == hits
    assert len(embedded) == 10
    assert not [record for record in caplog.records if record.name == "e2rank_st.cli.demo"]
    (folder,) = cache.iterdir()
    for name in ("data/*.lance", "_versions/*.manifest"):
        for file in folder.glob(f"documents.lance/{name}"):
            file.write_bytes(file.read_bytes()[:1000])
        caplog.clear()
        again = docstring_index(bundled, library).search(QUERY)
        assert [hit["id"] for hit in again] == [hit["id"] for hit in hits]
        assert str(folder) in caplog.text


def test_index_of_a_changed_model_is_left(bundled: E2Rank, facts: list[str], cache: Path, embedded: list[str], caplog):
    """Guards against old vectors for a folder whose model was trained further, or whose tokenizer was changed."""
    library = docstrings(facts)
    docstring_index(bundled, library)
    changed = copy.deepcopy(bundled)
    changed[0].auto_model.embeddings.word_embeddings.weight.data.mul_(-1)
    docstring_index(changed, library).search(QUERY)
    assert len(embedded) == 20 and len(list(cache.iterdir())) == 2
    changed = copy.deepcopy(bundled)
    changed.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("e", "a")
    docstring_index(changed, library).search(QUERY)
    assert len(embedded) == 30
    assert "does not give the vectors of this index" in caplog.text
    docstring_index(bundled, library)
    assert len(embedded) == 30, "the model's own index is still there"


def test_unwritable_cache_is_no_error(bundled: E2Rank, cache: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a demo that fails where the home folder is read-only."""
    cache.touch()
    assert texts_of(docstring_index(bundled, docstrings(["a"]))) == ["a"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert cache.is_file()


def test_full_disk_is_no_error(bundled: E2Rank, cache: Path, caplog: pytest.LogCaptureFixture):
    """Guards against a demo that fails where the disk is full, and half an index in the cache."""
    texts = [f"text {row}" for row in range(100)]
    for size in (1000, 50_000):  # the table, and its rows
        caplog.clear()
        with small_disk(size):
            assert sorted(texts_of(docstring_index(bundled, docstrings(texts)))) == sorted(texts)
        assert "File too large" in caplog.text
        assert "\n" not in caplog.messages[0] and "/.cargo/" not in caplog.text
    caplog.clear()
    for index in (docstring_index(bundled, docstrings(texts)), SearchIndex.open(next(cache.iterdir()), bundled)):
        assert sorted(texts_of(index)) == sorted(texts)
    assert not caplog.records


def test_other_texts_are_left(bundled: E2Rank, cache: Path):
    """Guards against answers from an index of other texts, as those of a library that was updated."""
    docstring_index(bundled, docstrings(["a", "b"]))
    for texts in (["c"], ["a", "d", "e"], ["e"]):
        assert sorted(texts_of(docstring_index(bundled, docstrings(texts)))) == texts


def test_cache_of_strangers_is_left(bundled: E2Rank, cache: Path, caplog: pytest.LogCaptureFixture):
    """Guards against the loss of somebody's files, and against a table that we did not make."""
    lancedb = pytest.importorskip("lancedb")
    docstring_index(bundled, docstrings(["a"]))
    (folder,) = cache.iterdir()
    (folder / "thesis.tex").write_text("my own")
    lancedb.connect(folder).create_table("documents", [{"mine": 1}], mode="overwrite")
    assert texts_of(docstring_index(bundled, docstrings(["a"]))) == ["a"]
    assert str(folder) in caplog.text
    assert lancedb.connect(folder).open_table("documents").to_arrow().to_pylist() == [{"mine": 1}]
    assert (folder / "thesis.tex").read_text() == "my own"


def test_user_without_home(bundled: E2Rank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Guards against a traceback in a container whose user does not have an entry."""

    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("e2rank_st.cli.demo.Path.home", refuse)
    assert texts_of(docstring_index(bundled, docstrings(["a"]))) == ["a"]
    assert "Could not determine home directory" in caplog.text


def test_every_model_has_its_folder(bundled: E2Rank, tiny: E2Rank, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against two models that overwrite each other's vectors at every turn."""
    for model in (bundled, tiny, copy.deepcopy(bundled).bfloat16(), bundled):
        docstring_index(model, docstrings(["a", "b"]))
    assert len(list(cache.iterdir())) == 3
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("e2rank_st.cli.demo.Path.home", lambda: cache / "home")
    docstring_index(bundled, docstrings(["a", "b"]))
    assert (cache / "home" / ".cache" / "e2rank-st").is_dir()


def test_given_queries_have_answers():
    """Guards against given queries about functions that this Python does not have."""
    names = {docstring.name for docstring in collect()}
    assert len(QUERIES) == 3
    assert {"asyncio.tasks.gather", "random.Random.sample", "shlex.split"} <= names


def test_a_page_of_an_index(tiny: E2Rank, facts: list[str], tmp_path: Path):
    """Guards against a page in tests only: the index, the model that made it, an address of this machine, the end."""
    for library in ("gradio", "lancedb"):
        pytest.importorskip(library)
    from gradio_client import Client

    model, folder = tmp_path / "model", tmp_path / "notes.lance"
    tiny.save_pretrained(str(model))
    SearchIndex.create(folder, E2Rank(str(model), device="cpu"), facts)
    command = [sys.executable, "-m", "e2rank_st.cli", "demo", "--web", "--index", str(folder), "--top-k", "3"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "the page is at" in line)
        url = line.split()[4]
        assert url.startswith("http://127.0.0.1:")
        client = Client(url, verbose=False, analytics_enabled=False)
        found = client.predict(QUERY, "notes.lance", "", "lines", 3, 0, api_name="/compare")
        assert "10 of 10 documents" in found[0] and found[2].count("<tr>") == 4
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in said
