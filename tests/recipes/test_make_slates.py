"""The slates of the bundled models' recipe, from toy folders."""

import json
from pathlib import Path

import pytest

from e2rank_st import E2Rank
from e2rank_st.data.slates import Slate, read_slates
from e2rank_st.labelling.heldout import HeldOut
from e2rank_st.labelling.mining import MiningSettings
from tests import load_script

SCRIPT = "recipes/bundled/make_slates.py"
make_slates = load_script(SCRIPT)


def write_folder(folder: Path, corpus: dict[str, str], queries: dict[str, str], **splits: list[tuple[str, str, int]]):
    """Write a folder in BEIR's layout."""
    folder.mkdir(parents=True)
    for name, texts in (("corpus", corpus), ("queries", queries)):
        rows = [json.dumps({"_id": id_, "text": text}) for id_, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for split, judged in splits.items():
        rows = ["\t".join(map(str, row)) for row in judged]
        (folder / f"qrels_{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]), encoding="utf-8")


def test_what_evaluation_sets_hold_is_held_out(tmp_path: Path) -> None:
    """Guards against a table of evaluation sets that a set is missing from, and against a folder that is required."""
    corpus, queries = {"d": "A fleas text", "e": "another"}, {"q": "asked", "r": "asked too"}
    for name, split in (make_slates.JUDGED | make_slates.WHOLE).items():
        texts = {id_: f"{name} {text}" for id_, text in corpus.items()}
        asked = {id_: f"{name} {text}" for id_, text in queries.items()}
        write_folder(tmp_path / name, texts, asked, **{split: [("q", "d", 1)]})
    held = make_slates.held_out(tmp_path)
    judged, whole = sorted(make_slates.JUDGED), sorted(make_slates.WHOLE)
    assert whole == ["dl21", "healthver", "nfcorpus", "scifact"] and judged == ["mediqa", "squad", "wikiqa"]
    assert held.documents == {f"{n} a fleas text" for n in judged + whole} | {f"{n} another" for n in whole}
    assert held.queries == {f"{n} asked" for n in judged + whole} | {f"{n} asked too" for n in whole}
    assert make_slates.held_out(tmp_path / "none") == HeldOut()


def test_sources_are_no_evaluation_sets() -> None:
    """Guards against training on what the model is chosen by or reported on, and against two files of one name."""
    names = [source.name for source in make_slates.MINED + make_slates.DEALT]
    assert len(names) == len(set(names))
    assert not {"healthver", "dl21", "nfcorpus", "scifact"} & set(names)
    assert not any("dl21" in source.path for source in make_slates.DEALT)


def mined(bundled: E2Rank, folder: Path, **options: object) -> list[Slate]:
    """The slates of a folder, with candidates of the real base."""
    source = make_slates.Mined(folder.name, 100, 100, **options)
    settings = MiningSettings(num_candidates=source.size, unjudged=True, gold_from=source.gold_from)
    return list(make_slates._mined(source, settings, bundled, HeldOut(), folder.parent, folder / "parts", 0))


def test_other_passages_of_a_cited_article_are_not_in_its_slate(tmp_path: Path, bundled: E2Rank) -> None:
    """Guards against passages that may answer, too, and are taught as wrong."""
    corpus = {f"{article}#{place}": f"{article} passage {place}" for article in "abc" for place in range(4)}
    write_folder(tmp_path / "citations", corpus, {"q": "a claim"}, train=[("q", "a#1", 1)])
    (slate,) = mined(bundled, tmp_path / "citations", siblings=False)
    assert slate.documents[0] == "a passage 1" and slate.gold == (True,) + (False,) * 8
    assert {text[0] for text in slate.documents[1:]} == {"b", "c"}
    assert set(slate.labels[1:]) == {None}


def test_documents_of_one_form_only(tmp_path: Path, bundled: E2Rank) -> None:
    """Guards against answers that a title tells from all candidates: 98 % of evidence's claims are about such ones."""
    corpus = {f"d{number}": f"{'TITLE: ' if number % 2 else ''}document {number}" for number in range(8)}
    write_folder(tmp_path / "evidence", corpus, {"q": "a claim", "r": "other"}, train=[("q", "d1", 1), ("r", "d2", 1)])
    (slate,) = mined(bundled, tmp_path / "evidence", only="^TITLE:")
    assert set(slate.documents) == {f"TITLE: document {number}" for number in (1, 3, 5, 7)}


def test_lists_are_left_to_the_dealt_and_wrong_answers_alone_teach_nothing(tmp_path: Path, bundled: E2Rank) -> None:
    """Guards against grade 1, the worst of a graded list, as an answer, and against slates without a lesson."""
    corpus = {f"d{number}": f"document {number}" for number in range(6)}
    judged = [("one", "d0", 1), ("list", "d1", 1), ("list", "d2", 5), ("bad", "d3", 0)]
    queries = {"one": "asked once", "list": "asked and graded", "bad": "asked in vain"}
    write_folder(tmp_path / "msmarco_dev", corpus, queries, train=judged)
    (slate,) = mined(bundled, tmp_path / "msmarco_dev", most_judged=1, size=3)
    assert slate.query == "asked once" and slate.documents[0] == "document 0" and len(slate) == 3
    dealt = make_slates.Dealt("graded", "msmarco_dev", documents=20, slates=2, size=12, least=2)
    (slate,) = make_slates._dealt(dealt, HeldOut(), tmp_path, 0)
    assert slate == Slate("asked and graded", ("document 1", "document 2"), (1.0, 5.0), (False, False), "graded")


def test_a_teachers_order_is_thinned_once_and_dealt(tmp_path: Path) -> None:
    """Guards against more distinct documents than are wanted: each costs an embedding."""
    hits = [{"content": f"text {number}", "docid": str(number), "rank": number + 1} for number in range(40)]
    (tmp_path / "list.jsonl").write_text(json.dumps({"query": "asked", "hits": hits}), encoding="utf-8")
    source = make_slates.Dealt("teacher", "list.jsonl", documents=20, slates=6, size=10)
    slates = list(make_slates._dealt(source, HeldOut({"text 0"}), tmp_path, 0))
    assert [len(slate) for slate in slates] == [10] * 6
    assert len({text for slate in slates for text in slate.documents}) <= 20
    assert not any("text 0" in slate.documents for slate in slates)
    for slate in slates:
        assert [39.0 - int(text.split()[1]) for text in slate.documents] == list(slate.labels)


def test_everything_is_written_once(tmp_path: Path, bundled: E2Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a dev set without first-stage results, and against finished files that are made anew."""
    corpus, queries = {"d": "a flea", "e": "a cat", "f": "a dog"}, {"q": "what bites", "r": "what barks"}
    judged = {"train": [("q", "d", 1)], "dev": [("r", "f", 1)]}
    write_folder(tmp_path / "data" / "squad", corpus, queries, **judged)
    write_folder(
        tmp_path / "data" / "healthver", {"h": "a drug", "f": "a dog"}, {"r": "what barks"}, dev=[("r", "f", 1)]
    )
    monkeypatch.setattr(make_slates, "MINED", (make_slates.Mined("squad", 3, 1),))
    monkeypatch.setattr(make_slates, "DEALT", ())
    monkeypatch.setattr(make_slates, "DEV", {"healthver": None})
    monkeypatch.setattr(E2Rank, "from_bundled", lambda name: bundled)
    make_slates.main(data=tmp_path / "data", output=tmp_path / "out", seed=0)
    (slate,) = read_slates(tmp_path / "out" / "squad.parquet")
    assert slate.documents[0] == "a flea" and "a dog" not in slate.documents  # dev judges the dog
    written = (tmp_path / "out" / "healthver_dev.jsonl").read_text(encoding="utf-8")
    assert json.loads(written)["hits"][0]["docid"] == "f"
    assert (tmp_path / "out" / "healthver_dev.qrels").read_text(encoding="utf-8") == "r 0 f 1\n"


def test_a_missing_data_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against an outsider who sees a traceback, and never learns which data is needed."""
    with pytest.raises(SystemExit) as ended:
        make_slates.main(data=tmp_path / "none", output=tmp_path, seed=0)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert f"make_slates: error: The folder {tmp_path / 'none'} is missing" in error
    assert "data.md" in error
