"""First-stage results of a model's own."""

import json
from pathlib import Path

import pytest

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.labelling.retrieval import write_first_stage


def test_first_stage_is_what_the_model_retrieves(bundled, facts: list[str], tmp_path: Path) -> None:
    """Guards against candidates of another order, and judgements of documents that are not found getting lost."""
    corpus = {f"d{number}": fact for number, fact in enumerate(facts)}
    collection = JudgedCorpus(corpus, {"q": "how long do fleas live"}, {"q": {"d0": 2.0, "d1": 0.0}})
    write_first_stage(tmp_path / "first.jsonl", bundled, collection)
    (row,) = map(json.loads, (tmp_path / "first.jsonl").read_text(encoding="utf-8").splitlines())
    scores = [hit["score"] for hit in row["hits"]]
    assert scores == sorted(scores, reverse=True)
    expected = bundled.encode_document(facts) @ bundled.encode_query("how long do fleas live")
    assert scores == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert all(corpus[hit["docid"]] == hit["content"] for hit in row["hits"])
    assert (tmp_path / "first.qrels").read_text(encoding="utf-8") == "q 0 d0 2\nq 0 d1 0\n"
