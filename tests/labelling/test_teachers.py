"""Teachers: labels belong to the right documents, and gold documents stay gold."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import cos_sim
from transformers import BertConfig, BertForSequenceClassification

from e2rank_st import E2Rank
from e2rank_st.data.slates import DataError, Slate
from e2rank_st.labelling.teachers import CrossEncoderTeacher, E2RankTeacher, EmbeddingTeacher, Teacher, label_slates
from tests.conftest import toy_tokenizer

DOCUMENTS = ["three", "one", "four", "two"]
SLATE = Slate("how many", tuple(DOCUMENTS), (1, 0, 0, None), (True, False, False, False), "s")


class Lengths(Teacher):
    """Labels a document with its length, and keeps the documents that it saw."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []

    def label(self, query: str, documents: Sequence[str]) -> list[float]:
        """The lengths."""
        self.shown.append(list(documents))
        return [float(len(document)) for document in documents]


def test_labels_are_replaced_and_gold_is_kept():
    """Guards against labels of other documents after the shuffle, and against gold that the teacher overrules."""
    (slate,) = label_slates([SLATE], Lengths())
    assert slate == Slate("how many", tuple(DOCUMENTS), (5, 3, 4, 3), (True, False, False, False), "s")


def test_teachers_do_not_see_which_document_is_gold():
    """Guards against a listwise teacher that learns the labels from the order: slates list known positives first."""
    slates = [Slate(f"query {number}", tuple("abcdefgh"), (1,) * 8) for number in range(40)]
    teacher = Lengths()
    list(label_slates(slates, teacher))
    firsts = {documents[0] for documents in teacher.shown}
    assert len(firsts) > 4
    again, other, as_given = Lengths(), Lengths(), Lengths()
    list(label_slates(slates[::-1], again))
    list(label_slates(slates, other, seed=1))
    list(label_slates(slates, as_given, seed=None))
    assert again.shown[::-1] == teacher.shown != other.shown
    assert as_given.shown == [list("abcdefgh")] * 40


def test_slates_are_labelled_as_they_come():
    """Guards against memory that grows with the data set: never more than a batch is taken ahead."""
    taken = []
    slates = (taken.append(number) or replace(SLATE, query=f"query {number}") for number in range(10))
    labelled = label_slates(slates, Lengths(), batch_size=3)
    assert taken == []
    assert next(labelled).query == "query 0"
    assert taken == [0, 1, 2]
    assert [slate.query for slate in labelled] == [f"query {number}" for number in range(1, 10)]


@pytest.mark.parametrize("labels", [[1.0, 2.0], [1.0] * 5, [1.0, 2.0, 3.0, float("nan")]])
def test_bad_labels_are_refused(labels: list[float]):
    """Guards against a teacher that diverged, or that gives labels of another slate."""

    class Bad(Teacher):
        def label(self, query: str, documents: Sequence[str]) -> list[float]:
            return labels

    with pytest.raises(DataError, match="labels: "):
        list(label_slates([SLATE], Bad()))


def test_progress_bar_can_be_switched(capfd: pytest.CaptureFixture):
    """Guards against a bar in a log file, and against none where it was asked for."""
    list(label_slates([SLATE] * 3, Lengths(), show_progress_bar=False))
    assert capfd.readouterr().err == ""
    list(label_slates([SLATE] * 3, Lengths(), total=3, show_progress_bar=True))
    assert "3/3" in capfd.readouterr().err


def tiny_cross_encoder(folder: Path, outputs: int = 1) -> CrossEncoder:
    """A cross-encoder with random weights, from disk as any other."""
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
        num_labels=outputs,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return CrossEncoder(str(folder), device="cpu")


def test_cross_encoder(tmp_path: Path):
    """Guards against scores in the order of their length, or after a sigmoid, and against slates that run together."""
    model = tiny_cross_encoder(tmp_path / "model")
    teacher = CrossEncoderTeacher(model, batch_size=2)
    queries, lists = ["how many", "which"], [DOCUMENTS, ["a longer text than the others", "b"]]
    labels = teacher.label_batch(queries, lists)
    for query, documents, given in zip(queries, lists, labels, strict=True):
        for document, label in zip(documents, given, strict=True):
            features = model.tokenizer(query, document, return_tensors="pt")
            with torch.no_grad():
                expected = model.model(**features).logits.item()
            assert label == pytest.approx(expected, abs=1e-5)
    assert len({round(label, 5) for part in labels for label in part}) == 6
    assert teacher.label("how many", DOCUMENTS) == pytest.approx(labels[0], abs=1e-5)
    (slate,) = label_slates([SLATE], teacher)
    assert slate.labels == pytest.approx(labels[0], abs=1e-5)
    assert slate.gold == SLATE.gold


def test_models_that_are_no_teachers(tmp_path: Path):
    """Guards against the score of some class taken for relevance, and an AttributeError after the first batch."""
    with pytest.raises(ValueError, match="has 3 outputs; give one with a single score"):
        CrossEncoderTeacher(tiny_cross_encoder(tmp_path / "model", outputs=3))
    with pytest.raises(ValueError, match="cannot rerank; give an E2Rank model"):
        E2RankTeacher(object())  # type: ignore[arg-type]


def test_e2rank_teacher(tiny: E2Rank, facts: list[str]):
    """Guards against scores in the order of the ranking instead of the documents, and a prompt that trusts it."""
    query = "how long do fleas live"
    labels = E2RankTeacher(tiny).label(query, facts)
    hits = tiny.rerank(query, facts, candidate_order="similarity")
    assert {hit["corpus_id"]: hit["score"] for hit in hits} == pytest.approx(dict(enumerate(labels)), abs=1e-6)
    reversed_labels = E2RankTeacher(tiny, num_prompt_documents=3).label(query, facts[::-1])
    assert reversed_labels[::-1] == pytest.approx(
        E2RankTeacher(tiny, num_prompt_documents=3).label(query, facts), abs=1e-6
    )
    both = E2RankTeacher(tiny).label_batch([query, "iron"], [facts, facts[:3]])
    assert both[0] == pytest.approx(labels, abs=1e-6)
    assert [len(part) for part in both] == [10, 3]


def test_embedding_teacher(tiny: E2Rank, facts: list[str]):
    """Guards against vectors of other texts, and a text that is embedded twice."""
    embedded = []
    hook = tiny[0].register_forward_hook(lambda module, args, output: embedded.append(len(args[0]["input_ids"])))
    queries, documents, teacher = ["flea", "bread"], [facts[:6], facts[3:9]], EmbeddingTeacher(tiny)
    found = teacher.label_batch(queries, documents)
    teacher.label_batch(queries, documents)
    assert sum(embedded) == 2 + 9
    hook.remove()
    for query, texts, labels in zip(queries, documents, found, strict=True):
        expected = cos_sim(tiny.encode_query(query), tiny.encode_document(texts))[0]
        assert labels == pytest.approx(expected.tolist(), abs=1e-5)
