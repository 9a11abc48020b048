"""Candidates from every source, and bad files refused with their place."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.benchmarks.candidates import Candidates
from e2rank_st.benchmarks.first_stages import (
    Files,
    locate,
    own_first_stage,
    read_excluded,
    read_files,
    read_over_collection,
)
from e2rank_st.benchmarks.models import Subject
from e2rank_st.benchmarks.tasks import TASKS, Task
from e2rank_st.data.files import DataError
from e2rank_st.data.trec import write_run
from e2rank_st.search.texts import TextVectors
from tests.benchmarks.data import write_beir, write_task


def retrieve(tiny: E2Rank, folder: Path, top_n: int, excluded=None, **options) -> tuple[Candidates, TextVectors]:
    """Candidates of the model's own, of a task of the user's."""
    return own_first_stage(Subject(tiny, "org/tiny", "1"), Task("own", "Own", **options), folder, top_n, excluded or {})


def test_results_with_text(tmp_path: Path):
    """Guards against ids, texts and scores of other rows, and against grades of other documents."""
    files = locate(TASKS["dl21"], "bm25", write_task(tmp_path))
    found = read_files(files, "bm25", top_n=100).checked()
    row = json.loads(files.results.read_text(encoding="utf-8").splitlines()[2])
    case = found.cases[2]
    assert (case.query_id, case.query) == ("q2", row["query"])
    for name, column in (("docid", case.ids), ("content", case.documents), ("score", case.scores)):
        assert column == tuple(hit[name] for hit in row["hits"])
    assert found.judgements["q2"]["d2-0"] == 2
    assert (found.first_stage, found.local, found.partial) == ("bm25", True, False)
    assert set(found.sources) == {"dl21_bm25_top100.jsonl", "dl21_qrels.txt"}


def test_compressed_and_cut(tmp_path: Path):
    """Guards against a compressed file that is not found, and candidates that are cut from the wrong end."""
    folder = write_task(tmp_path) / "rerank"
    plain = folder / "dl21_bm25_top100.jsonl"
    (folder / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    whole = read_files(locate(TASKS["dl21"], "bm25", tmp_path), "bm25", 100)
    plain.unlink()
    cut = read_files(locate(TASKS["dl21"], "bm25", tmp_path), "bm25", 2)
    assert [case.ids for case in cut.cases] == [case.ids[:2] for case in whole.cases]


def test_excluded_documents_leave_room_for_others(tmp_path: Path):
    """Guards against BRIGHT's excluded documents, which are the query itself, among the candidates."""
    task = TASKS["bright-aops"]
    folder = write_task(tmp_path, name=task.name) / "rerank"
    with pytest.raises(FileNotFoundError, match=r"bright-aops_excluded\.jsonl"):
        read_excluded(task, tmp_path)
    assert read_excluded(TASKS["dl21"], tmp_path) == {}
    whole = read_files(Files(*(folder / f"{task.name}_{end}" for end in ("bm25_top100.jsonl", "qrels.txt"))), "", 3)
    first = whole.cases[0].ids[0]
    rows = [{"id": "q0", "excluded_ids": [first]}, {"id": "q1", "excluded_ids": ["N/A"]}]
    (folder / f"{task.name}_excluded.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = read_files(locate(task, "bm25", tmp_path), "bm25", 3, read_excluded(task, tmp_path))
    assert first not in found.cases[0].ids
    assert len(found.cases[0].ids) == 3
    assert found.cases[1:] == whole.cases[1:]


def test_excluded_documents_are_left_out_of_every_first_stage(tmp_path: Path, tiny: E2Rank):
    """Guards against BRIGHT scored with them because its candidates were not those of its own file."""
    folder = write_beir(tmp_path / "toys")
    whole, _ = retrieve(tiny, folder, 4)
    excluded = {whole.cases[0].query_id: frozenset({whole.cases[0].ids[0]})}
    run = {case.query_id: dict(zip(case.ids, case.scores, strict=True)) for case in whole.cases}
    write_run(tmp_path / "run.trec", run, "own")
    retrieved, _ = retrieve(tiny, folder, 3, excluded)
    given = read_over_collection(folder, "test", tmp_path / "run.trec", 3, excluded)
    for found in (retrieved, given):
        assert found.cases[0].ids == whole.cases[0].ids[1:4]
        assert [case.ids for case in found.cases[1:]] == [case.ids[:3] for case in whole.cases[1:]]


def test_missing_files_say_where_they_are_public(tmp_path: Path):
    """Guards against an error that leaves the user alone."""
    with pytest.raises(
        FileNotFoundError, match=r"no dl19_bm25_top100.jsonl or .*liuqi6777/retrieval_results on the Hub"
    ):
        locate(TASKS["dl19"], "bm25", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"qrels\.dl22-passage\.txt of github"):
        locate(TASKS["dl22"], "bm25", tmp_path)
    with pytest.raises(ValueError, match="dl23 cannot be fetched: The Hub holds no first-stage results"):
        locate(TASKS["dl23"], "bm25", None)
    with pytest.raises(ValueError, match="not a public task"):
        locate(Task("own", "own"), "bm25", None)


def test_run_over_a_collection(tmp_path: Path):
    """Guards against texts of other documents, and missing ones that score zero without a word."""
    folder = write_beir(tmp_path / "toys")
    run = {f"q{query}": {f"d{query}-1": 0.9, f"d{query}-0": 0.5} for query in range(5)}
    write_run(tmp_path / "bm25.trec", run, "bm25")
    found = read_over_collection(folder, "test", tmp_path / "bm25.trec", 100).checked()
    corpus = {row["_id"]: row["text"] for row in map(json.loads, (folder / "corpus.jsonl").open(encoding="utf-8"))}
    assert found.cases[3].documents == (corpus["d3-1"], corpus["d3-0"])
    assert found.cases[3].scores == (0.9, 0.5)
    assert found.first_stage == "bm25"
    for run, message in (
        ({"q0": {"nowhere": 1.0}}, r"1 candidates of query 'q0' have no text in toys, for example 'nowhere'"),
        ({"q99": {"d0-0": 1.0}}, "the query 'q99', which has no text in toys"),
    ):
        write_run(tmp_path / "other.trec", run, "s")
        with pytest.raises(ValueError, match=message):
            read_over_collection(folder, "test", tmp_path / "other.trec", 100)


def test_own_first_stage(tmp_path: Path, tiny: E2Rank):
    """Guards against another ranking than the model's own, and against vectors of other documents."""
    found, index = retrieve(tiny, write_beir(tmp_path / "toys"), 4)
    case = found.checked().cases[1]
    similar = tiny.similarity(tiny.encode_query(case.query), tiny.encode_document(list(case.documents)))[0]
    assert list(case.scores) == pytest.approx(similar.tolist(), abs=1e-5)
    assert len(case.ids) == 4
    np.testing.assert_allclose(index.vectors(case.documents), tiny.encode_document(list(case.documents)), atol=1e-5)
    assert found.first_stage == "own"


def test_ties_do_not_keep_the_order_of_the_corpus(tmp_path: Path, tiny: E2Rank):
    """Guards against relevant documents that win ties because their corpus lists them first."""
    folder = write_beir(tmp_path / "toys", number=1)
    ids = [f"d0-{place}" for place in range(40)]  # d0-0 is relevant
    rows = [json.dumps({"_id": id_, "title": "", "text": "one text"}) for id_ in ids]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    forward = retrieve(tiny, folder, 10)[0].cases[0].ids
    (folder / "corpus.jsonl").write_text("\n".join(rows[::-1]) + "\n", encoding="utf-8")
    assert forward == retrieve(tiny, folder, 10)[0].cases[0].ids
    assert forward != tuple(ids[:10])


def test_corpus_of_a_split_is_its_groups(tmp_path: Path, tiny: E2Rank):
    """Guards against candidates from the articles of other splits, and hard negatives that are lost with them."""
    folder = write_beir(tmp_path / "toys", number=2)
    judged = {line.split("\t")[1] for line in (folder / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]}
    rows = [
        json.dumps({"_id": f"{id_}#{place}", "title": "", "text": f"{id_} {place}"})
        for id_ in (*judged, "other")
        for place in range(3)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    text = (folder / "qrels" / "test.tsv").read_text("utf-8")
    for id_ in judged:
        text = text.replace(f"\t{id_}\t", f"\t{id_}#0\t")
    (folder / "qrels" / "test.tsv").write_text(text, encoding="utf-8")
    found = retrieve(tiny, folder, 100, judged_groups=True)[0]
    assert set(found.cases[0].ids) == {f"{id_}#{place}" for id_ in judged for place in range(3)}
    assert "other#0" in retrieve(tiny, folder, 100)[0].cases[0].ids


def test_a_sample_is_the_same_whatever_the_order(tmp_path: Path, tiny: E2Rank):
    """Guards against a task that is other queries on another day, and against one that is silently smaller."""
    folder = write_beir(tmp_path / "toys")
    drawn = retrieve(tiny, folder, 4, sample=2)[0].checked()
    assert len(drawn.cases) == 2
    assert not drawn.partial
    qrels = folder / "qrels" / "test.tsv"
    head, *lines = qrels.read_text(encoding="utf-8").splitlines()
    qrels.write_text("\n".join([head, *lines[::-1]]) + "\n", encoding="utf-8")
    again = retrieve(tiny, folder, 4, sample=2)[0]
    assert {case.query_id for case in again.cases} == {case.query_id for case in drawn.cases}
    with pytest.raises(ValueError, match="a sample of 9 queries, and only 5 are judged"):
        retrieve(tiny, folder, 4, sample=9)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda hit: hit.pop("score"), "score: not a number"),
        (lambda hit: hit.update(qid="other"), "qid: not one query; the hits name 'other', 'q0'"),
        (lambda hit: hit.pop("docid"), "docid: missing"),
    ],
)
def test_bad_hits_are_refused_with_their_place(tmp_path: Path, edit, message: str):
    """Guards against scores that are made up, and hits of another query."""
    files = locate(TASKS["dl21"], "bm25", write_task(tmp_path))
    rows = [json.loads(line) for line in files.results.read_text(encoding="utf-8").splitlines()]
    edit(rows[0]["hits"][1])
    files.results.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=f"jsonl:1: {message}"):
        read_files(files, "bm25", 100)


def test_grades_are_whole_numbers(tmp_path: Path):
    """Guards against grades that trec_eval's library would cut off."""
    files = locate(TASKS["dl21"], "bm25", write_task(tmp_path))
    files.qrels.write_text("q0 0 d0-0 1.5\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"The grade of .d0-0. for .q0. is 1\.5"):
        read_files(files, "bm25", 100)
