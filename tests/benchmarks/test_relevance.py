"""Highest similarities with and without relevant documents: by hand, against numpy, and as they are written."""

from pathlib import Path

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.benchmarks.relevance import Options, Separation, area, kept, measure, read_separations, tables, write
from e2rank_st.data.beir import JudgedCorpus
from tests.benchmarks.data import write_beir

TASKS = {"nfcorpus-dev": "nfcorpus", "mediqa-dev": "mediqa"}


def test_area_by_hand():
    """Guards against a curve that is upside down, and ties that count for one side."""
    assert area([0.9, 0.8], [0.1, 0.7]) == 1.0
    assert area([0.1, 0.7], [0.9, 0.8]) == 0.0
    assert area([0.5, 0.5], [0.5]) == 0.5
    assert area([0.9, 0.4], [0.5, 0.4, 0.3]) == (3 + 1.5) / 6
    assert kept([0.3, 0.5, 0.7], 0.5) == pytest.approx(2 / 3), "what is just at it stays"


def test_tables_say_what_a_threshold_keeps():
    """Guards against shares in a wrong column."""
    part = Separation("Toy dev", 1234, present=[0.65, 0.45], removed=[0.65, 0.25], foreign=[0.1, 0.1])
    areas, shares = tables([part]).split("\n\n**Queries")
    assert "| Toy dev | 1,234 | 2 | 0.625 | 1.000 |" in areas
    assert "| Toy dev | 0.2 | 100 | 100 | 0 |" in shares
    assert "| Toy dev | 0.3 | 100 | 50 | 0 |" in shares
    assert "| Toy dev | 0.5 | 50 | 50 | 0 |" in shares
    assert "| Toy dev | 0.7 | 0 | 0 | 0 |" in shares


def test_similarities_are_those_of_the_corpus(checkpoint: Path, tiny: E2Rank, tmp_path: Path):
    """Guards against a relevant document that stays, an unrelated one that goes, and queries of a wrong task."""
    pytest.importorskip("matplotlib")
    for seed, folder in enumerate(TASKS.values()):
        beir = write_beir(tmp_path / folder, number=4 + seed, seed=seed)
        (beir / "qrels" / "test.tsv").rename(beir / "qrels" / "dev.tsv")
    options = Options(list(TASKS), tmp_path, model=str(checkpoint), device="cpu", output_dir=tmp_path / "out")
    first, second = measure(options)
    assert (len(first.present), len(first.removed), len(first.foreign)) == (4, 4, 5)
    assert (len(second.present), len(second.foreign)) == (5, 4)
    judged = JudgedCorpus.load(tmp_path / "nfcorpus", "dev")
    documents = tiny.encode_document(list(judged.corpus.values()))
    for place, (query, grades) in enumerate(judged.judgements.items()):
        # nfcorpus-dev has an instruction of its own.
        prompt = "Instruct: Given a question, retrieve relevant documents that best answer the question\nQuery:"
        cosines = documents @ tiny.encode_query(judged.queries[query], prompt=prompt)
        rest = [cosine for id_, cosine in zip(judged.corpus, cosines, strict=True) if id_ not in grades]
        assert len(rest) == len(cosines) - 1
        assert first.present[place] == pytest.approx(np.max(cosines), abs=1e-4)
        assert first.removed[place] == pytest.approx(max(rest), abs=1e-4)
    written = write(options, [first, second])
    assert [path.name for path in written] == ["relevance.json", "relevance.md", "relevance.png"]
    assert read_separations(written[0]) == [first, second]
    assert written[1].read_text(encoding="utf-8") == tables([first, second])
    assert str(tmp_path) not in written[0].read_text(encoding="utf-8")


def test_one_task_has_no_foreign_queries(tmp_path: Path):
    """Guards against a mean over nothing."""
    with pytest.raises(ValueError, match="at least two tasks"):
        Options(["nfcorpus-dev"], tmp_path)
