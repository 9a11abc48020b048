"""The slates of the bundled model's recipe."""

import json
from pathlib import Path

import pytest

from tests import load_script

SCRIPT = "recipes/e2rank-minilm-l6/make_slates.py"
make_slates = load_script(SCRIPT)
unseen = make_slates.unseen


def test_documents_that_dev_judges_are_left_out(tmp_path: Path) -> None:
    """Guards against dev figures of documents that were trained on, and against a set without dev that is refused."""
    rows = [json.dumps({"_id": f"d{number}", "text": f"text {number}"}) for number in range(4)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "asked"}', encoding="utf-8")
    (tmp_path / "qrels_train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n", encoding="utf-8")
    assert unseen(tmp_path).corpus.keys() == {f"d{number}" for number in range(4)}
    judged = "query-id\tcorpus-id\tscore\nq\td0\t0\nq\td2\t1\n"
    (tmp_path / "qrels_dev.tsv").write_text(judged, encoding="utf-8")
    rest = unseen(tmp_path)
    assert rest.corpus.keys() == {"d1", "d3"}
    assert rest.judgements == {}


def test_a_missing_data_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against an outsider who sees a traceback, and never learns which data is needed."""
    with pytest.raises(SystemExit) as ended:
        make_slates.main(data=tmp_path / "none", output=tmp_path, seed=0)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert f"make_slates: error: The folder {tmp_path / 'none'} is missing" in error
    assert "data.md" in error
