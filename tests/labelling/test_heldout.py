"""Evaluation sets are left out of training data by text."""

import json
import logging
from pathlib import Path

import pytest

from e2rank_st.data.slates import Slate
from e2rank_st.labelling.heldout import HeldOut, plain


def write(folder: Path, documents: dict[str, tuple[str, str]], queries: dict[str, str], split: str, qrels: str) -> Path:
    """Write a folder in BEIR's layout; documents are titles and texts, qrels are lines of query, document, grade."""
    folder.mkdir()
    rows = [json.dumps({"_id": id_, "title": title, "text": text}) for id_, (title, text) in documents.items()]
    (folder / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    rows = [json.dumps({"_id": id_, "text": text}) for id_, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(rows), encoding="utf-8")
    lines = ["query-id corpus-id score", *qrels.splitlines()]
    (folder / f"qrels_{split}.tsv").write_text("\n".join(lines).replace(" ", "\t"), encoding="utf-8")
    return folder


def test_case_and_white_space_do_not_count() -> None:
    """Guards against a copy that a different line break hides."""
    assert plain(" The  Cat\nflea ") == plain("the cat FLEA") == "the cat flea"


def test_documents_are_left_out_by_text_with_and_without_titles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against dev documents that come back under a new id, or with their title cut off or put before them."""
    evaluation = {"1": ("Fleas", "They jump."), "2": ("", "Cats purr."), "3": ("", "Dogs bark.")}
    dev = write(tmp_path / "dev", evaluation, {"v": "What jumps?", "w": "unused"}, "dev", "v 1 1\nv 2 0")
    documents = {
        "a": ("", "they  JUMP."),
        "b": ("", "Fleas They jump."),
        "c": ("Cats", "Cats purr."),
        "d": ("", "Dogs bark."),
        "e": ("Fleas", "They bite."),
    }
    queries = {"q": "what JUMPS?", "r": "Who bites?", "s": "who  bites?", "t": "Who purrs?", "u": "Unused"}
    train = write(tmp_path / "train", documents, queries, "train", "q e 1\nr e 0\ns e 1\ns d 2\nt c 1\nu d 1")
    held = HeldOut()
    held.add_split(dev, "dev")
    with caplog.at_level(logging.INFO, logger="e2rank_st"):
        rest = held.unseen(train)
    assert dict(rest.corpus) == {"d": "Dogs bark.", "e": "Fleas They bite."}  # dev does not judge the dog
    assert rest.judgements == {"r": {"e": 1, "d": 2}, "u": {"d": 1}}  # equal queries are one, with all judgements
    assert "train: left out 3 of 5 documents and 1 of 5 queries, which evaluation sets hold" in caplog.text
    held.add_folder(dev, "dev")
    assert held.unseen(train).judgements == {"r": {"e": 1}}


def test_lists_lose_documents_and_queries(caplog: pytest.LogCaptureFixture) -> None:
    """Guards against labels that leave their document when one before it goes."""
    held = HeldOut({"b", "c"}, {"asked"})
    slates = [
        Slate("kept", ("a", "B", "d"), (1.0, 2.0, 3.0), (False, True, True), "s"),
        Slate("Asked", ("a",), (1.0,)),
        Slate("empty", ("b", "c"), (1.0, None)),
    ]
    with caplog.at_level(logging.INFO, logger="e2rank_st"):
        assert list(held.unseen_slates(slates, "s")) == [Slate("kept", ("a", "d"), (1.0, 3.0), (False, True), "s")]
    assert "s: left out 3 of 6 documents and 1 of 3 queries" in caplog.text
