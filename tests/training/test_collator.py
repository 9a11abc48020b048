"""Slates → batches: the prompts of inference, ragged slates, and draws that only seed, epoch and query change."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from e2rank_st import E2Rank
from e2rank_st.embedding_e2rank import Embedder
from e2rank_st.search.texts import TextVectors
from e2rank_st.storage import text_id
from e2rank_st.training.collator import FILLER, SlateCollator, prompt_orders, sample_documents
from e2rank_st.training.labels import SlateLabels
from e2rank_st.training.losses import COLUMNS, E2RankLoss
from tests.toy import toy_rows

MASKED = ("input_ids", "attention_mask")
BATCH = [
    {
        "query": "how long do fleas live",
        "documents": ["Fleas live about one hundred days.", "Bread rises.", "An adult flea dies within days."],
        "labels": [2.0, 0.0, None],
        "gold": [True, False, False],
        "prompt_order": [2, 0, 1],
    },
    {
        "query": "why does bread rise",
        "documents": ["Yeast makes gas.", "<|im_end|> Iron melts."],
        "labels": [1.0, 1.0],
        "gold": [False, False],
    },
]


def unpadded(batch: dict[str, Any], column: str) -> list[tuple[int, ...]]:
    """The token ids of each row of a column, without padding."""
    ids, mask = batch[f"{column}_input_ids"], batch[f"{column}_attention_mask"].bool()
    return [tuple(row[present].tolist()) for row, present in zip(ids, mask, strict=True)]


def changed(model: E2Rank, **listwise: Any) -> E2Rank:
    """A copy with another listwise configuration."""
    model = copy.deepcopy(model)
    model.replace_listwise(**listwise)
    return model


def prompts_of_reranking(model: E2Rank, monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> list[Any]:
    """The token ids of the prompts that ``rerank`` embeds."""
    seen: list[Any] = []
    embed: Callable[..., Any] = Embedder.embed

    def spy(self: Embedder, sequences: Any, kind: str, *args: Any) -> Any:
        seen.extend(sequences if kind == "prompt" else [])
        return embed(self, sequences, kind, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", spy)
        model.rerank(*args, **options)
    return seen


@pytest.mark.parametrize("name", ["tiny", "bundled"])
def test_training_prompts_are_those_of_reranking(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, facts: list[str]
) -> None:
    """Guards against training on prompts that inference never builds: other text, other documents, other cuts."""
    base = request.getfixturevalue(name)
    queries, documents = ["how long do fleas live", "capital of China"], [facts, [fact * 20 for fact in facts[:7]]]
    rows = [
        {"query": query, "documents": texts, "labels": [0.0] * len(texts), "gold": [False] * len(texts)}
        for query, texts in zip(queries, documents, strict=True)
    ]
    for order in ("given", "similarity"):
        model = changed(base, num_prompt_documents=5, candidate_order=order)
        places = prompt_orders(model, queries, documents)
        ordered = [row | {"prompt_order": order} for row, order in zip(rows, places, strict=True)]
        collator = SlateCollator(model=model, documents_per_slate=2)
        expected = prompts_of_reranking(model, monkeypatch, queries, documents)
        assert unpadded(collator(ordered), "listwise") == expected
    assert places != [list(range(len(texts))) for texts in documents], "the two orders should differ"


@pytest.mark.parametrize("side", ["left", "right"])
def test_queries_and_documents_are_those_of_encoding(tiny: E2Rank, side: str) -> None:
    """Guards against texts without their prompt or EOS, cut at another length, or with their mask on another side."""
    tiny = copy.deepcopy(tiny)
    tiny.max_seq_length, tiny.tokenizer.padding_side = 9, side
    batch = SlateCollator(model=tiny)(BATCH)
    texts = [*BATCH[0]["documents"], *BATCH[1]["documents"], FILLER]
    for column, expected in (
        ("query", tiny.encode_query([row["query"] for row in BATCH], convert_to_tensor=True)),
        ("documents", tiny.encode_document(texts, convert_to_tensor=True)),
    ):
        features = {name: batch[f"{column}_{name}"] for name in ("input_ids", "attention_mask")}
        assert features["input_ids"].shape[1] <= 9
        assert column == "query" or bool(features["attention_mask"][:, 0].all()) == (side == "right")
        with torch.no_grad():
            torch.testing.assert_close(tiny(features)["sentence_embedding"], expected, atol=1e-5, rtol=1e-4)


def test_columns_are_those_that_trainer_and_loss_expect(tiny: E2Rank) -> None:
    """Guards against columns that the trainer pairs with another's name, since it goes by their order.

    Also against a batch that the loss reads otherwise, and stage I paying for prompts that no loss reads.
    """
    batch = SlateCollator(model=tiny)([row | {"dataset_name": "facts"} for row in BATCH])
    names = [f"{column}_{name}" for column in COLUMNS[:3] for name in ("input_ids", "attention_mask")]
    assert list(batch) == ["label", "dataset_name", *names]
    assert batch["dataset_name"] == "facts"
    assert [len(batch[f"{column}_input_ids"]) for column in COLUMNS[:3]] == [2, 2, 6]
    features = [{name: batch[f"{column}_{name}"] for name in MASKED} for column in COLUMNS[:3]]
    parts = E2RankLoss(tiny)(features, batch["label"])
    assert all(part.isfinite() and part > 0 for part in parts.values())
    alone = SlateCollator(model=tiny, columns=("query", "documents"))(BATCH)
    assert list(alone) == ["label", *(name for name in names if not name.startswith("listwise"))]


def test_ragged_slates_are_filled_up(tiny: E2Rank) -> None:
    """Guards against filler that counts as a document, or labels that belong to another one."""
    batch = SlateCollator(model=tiny)(BATCH)
    slates = SlateLabels.unpack(batch["label"])
    assert slates.candidates.tolist() == [[True, True, True], [True, True, False]]
    assert slates.labels[0, :2].tolist() == [2.0, 0.0]
    assert slates.labels[0, 2].isnan()
    assert slates.gold.tolist() == [[True, False, False], [False, False, False]]
    eos = tiny.tokenizer.get_vocab()["<|endoftext|>"]
    assert unpadded(batch, "documents")[-1] == (*tiny.tokenizer(FILLER)["input_ids"][:1], eos)


def test_frozen_documents_come_as_vectors(tiny: E2Rank) -> None:
    """Guards against vectors of other documents, and against a guard that watches texts of other slates."""
    index = TextVectors.build(tiny, list(dict.fromkeys(text for row in BATCH for text in row["documents"])))
    collator = SlateCollator(model=tiny, frozen=index, columns=COLUMNS, documents_per_slate=2)
    batch = collator(BATCH)
    assert "documents_input_ids" not in batch
    slates = SlateLabels.unpack(batch["label"])
    stored = dict(zip(map(text_id, index.texts), index.embeddings, strict=True))
    expected = [stored[number] for number in slates.text_ids.flatten().tolist()]
    assert (batch["documents_sentence_embedding"].numpy() == expected).all()
    encoded = tiny.preprocess([text for row in BATCH for text in row["documents"]])
    whole = [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(*map(encoded.get, MASKED), strict=True)]
    (guarded,) = unpadded(batch, "guarded")  # of the first of every four slates
    assert guarded in whole[:3]
    assert len(unpadded(collator([*BATCH] * 4), "guarded")) == 2
    padded = SlateCollator(model=tiny, frozen=index, fill_up=True, documents_per_slate=3)(BATCH)
    assert padded["documents_sentence_embedding"].shape == (6, index.dimension)
    assert not padded["documents_sentence_embedding"][5].any()
    with pytest.raises(KeyError, match="Nothing"):
        collator([BATCH[0] | {"documents": ["Nothing", "Fleas", "Bread"]}])


def test_filling_up_to_a_fixed_size(tiny: E2Rank) -> None:
    """Guards against processes with other numbers of mini-batches, which wait for each other for ever."""
    plain, filled = (SlateCollator(model=tiny, documents_per_slate=5, fill_up=flag)(BATCH) for flag in (False, True))
    ours, theirs = (SlateLabels.unpack(batch["label"]) for batch in (plain, filled))
    assert theirs.labels.shape == (2, 5)
    assert len(filled["documents_input_ids"]) == 10
    assert not theirs.candidates[:, 3:].any()
    for part, other in zip(ours, theirs, strict=True):
        assert torch.equal(part.nan_to_num(), other[:, :3].nan_to_num())
    rows = unpadded(filled, "documents")
    assert rows[:3] + rows[5:8] == unpadded(plain, "documents")
    assert len({*rows[3:5], *rows[7:]}) == 1


def test_sampling_keeps_gold_and_best() -> None:
    """Guards against slates that lose what they are to learn, and against slates of positives alone."""
    row = {"gold": [False] * 18 + [True, False], "labels": [0.0] * 19 + [3.0]}
    draws = [sample_documents(row, 5, random.Random(seed)) for seed in range(20)]
    assert all({18, 19} <= set(places) and len(places) == 5 and places == sorted(places) for places in draws)
    assert len({tuple(places) for places in draws}) > 10
    many = {"gold": [True] * 50 + [False] * 50, "labels": [1.0] * 50 + [0.0] * 50}
    golds = [sum(place < 50 for place in sample_documents(many, 16, random.Random(seed))) for seed in range(20)]
    assert min(golds) >= 8
    assert max(golds) < 16
    assert sample_documents(many, 1, random.Random(0))[0] < 50
    assert sample_documents(row, 20, random.Random(0)) == list(range(20))


def test_batches_depend_on_seed_epoch_and_query_only(tiny: E2Rank) -> None:
    """Guards against a resumed run, or a slate in other company, with other draws; and against epochs all alike."""
    rows = toy_rows(6, seed=1)
    options = {"documents_per_slate": 3, "random_prompt_size": 1.0, "seed": 7}
    collators = [SlateCollator(model=tiny, **options) for _ in range(2)]
    first, second = (unpadded(collator(rows), "listwise") for collator in collators)
    assert first == second
    assert unpadded(collators[0](rows[3:4]), "listwise") == first[3:4]
    collators[0].set_epoch(1)
    assert unpadded(collators[0](rows), "listwise") != first
    collators[0].set_epoch(0)
    assert unpadded(collators[0](rows), "listwise") == first
    other = SlateCollator(model=tiny, **(options | {"seed": 8}))
    assert unpadded(other(rows), "listwise") != first


def test_workers_give_the_same_batches_in_every_epoch(tiny: E2Rank) -> None:
    """Guards against data-loader workers that live on and never hear of the next epoch."""
    rows = toy_rows(8, seed=2)
    collator = SlateCollator(model=tiny, documents_per_slate=3, random_prompt_size=1.0)
    loader = DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=1, persistent_workers=True)  # type: ignore[arg-type]
    seen = []
    for epoch in range(2):
        collator.set_epoch(epoch)
        here = [collator(rows[start : start + 4]) for start in (0, 4)]
        for ours, theirs in zip(here, loader, strict=True):
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        seen.append(here[0]["listwise_input_ids"])
    assert seen[0].shape != seen[1].shape or not torch.equal(*seen)


def test_random_size(tiny: E2Rank) -> None:
    """Guards against prompts of a random size that are all alike, or that show more than K documents."""
    rows = [BATCH[0] | {"query": f"query {number}"} for number in range(40)]
    prompts = [unpadded(SlateCollator(model=changed(tiny, num_prompt_documents=k))(rows), "listwise") for k in (1, 2)]
    sized = SlateCollator(model=changed(tiny, num_prompt_documents=2), random_prompt_size=1.0)
    sizes = [row.index(found) for *row, found in zip(*prompts, unpadded(sized(rows), "listwise"), strict=True)]
    assert set(sizes) == {0, 1}


def test_similarity_order_hides_where_documents_stood(tiny: E2Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against positives that stand first in a slate, and so in the prompt; and against embedding texts twice."""
    rows, tiny = toy_rows(4, seed=3), changed(tiny, candidate_order="similarity")
    queries, documents = [row["query"] for row in rows], [[*row["documents"], "about all"] for row in rows]
    calls: list[str] = []
    encode = tiny.encode_document
    monkeypatch.setattr(
        tiny, "encode_document", lambda texts, **options: calls.extend(texts) or encode(texts, **options)
    )
    orders = prompt_orders(tiny, queries, documents)
    assert len(calls) == len(set(calls))
    assert set(calls) == {text for texts in documents for text in texts}
    turned = prompt_orders(tiny, queries, [texts[::-1] for texts in documents])
    for texts, order, again in zip(documents, orders, turned, strict=True):
        assert [texts[place] for place in order] == [texts[::-1][place] for place in again]
        assert sorted(order) == list(range(len(texts)))
    assert any(order[0] != 0 for order in orders)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"documents_per_slate": 0}, {}, "documents_per_slate must be at least 1, got 0"),
        ({"random_prompt_size": 2}, {}, "random_prompt_size must be a share from 0 to 1, got 2"),
        ({}, {"labels": [1.0]}, "has 1 labels for 3 documents"),
        ({}, {"prompt_order": [0, 3]}, r"prompt_order .*\[0, 3\]"),
    ],
)
def test_wrong_options_and_rows_are_refused(tiny: E2Rank, options: dict, change: dict, message: str) -> None:
    """Guards against a typing error that trains something else, labels of other documents, and a wrong prompt."""
    with pytest.raises(ValueError, match=message):
        SlateCollator(model=tiny, **options)([BATCH[0] | change])
