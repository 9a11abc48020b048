"""Stage II as published: the texts of its batches, how many negatives a query has, and its losses."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from e2rank_st import E2Rank
from e2rank_st.data.formats import read_rankings
from e2rank_st.training.collator import SlateCollator
from e2rank_st.training.datasets import load_training_data
from e2rank_st.training.labels import SlateLabels
from e2rank_st.training.objectives import info_nce, ranknet
from e2rank_st.training.settings import Parsed, parse_settings
from e2rank_st.training.trainer import E2RankTrainer
from tests import ROOT
from tests.toy import toy_rows
from tests.training.conftest import write
from tests.training.labelled import slates

pytest.importorskip("yaml")
pytest.importorskip("accelerate")

# "rows" from the paper's formats; "losses" are what the authors' code computes in float64 from these vectors.
GOLDEN = json.loads((ROOT / "tests" / "golden" / "training.json").read_text(encoding="utf-8"))
RECIPE = ROOT / "recipes" / "paper" / "stage2.yaml"


@pytest.fixture
def recipe(tmp_path: Path) -> Parsed:
    return parse_settings([str(RECIPE), "--train", "rows.jsonl", "--output_dir", str(tmp_path / "run")])


@pytest.fixture
def collator(tiny: E2Rank, recipe: Parsed) -> SlateCollator:
    prompt, instructions = recipe.arguments.training_prompt, recipe.arguments.source_instructions
    return SlateCollator(model=copy.deepcopy(tiny), prompt=prompt, instructions=instructions)


def texts(model: E2Rank, batch: dict[str, Any], column: str) -> list[str]:
    """The texts of a column, control tokens included."""
    ids, mask = batch[f"{column}_input_ids"], batch[f"{column}_attention_mask"].bool()
    return [model.tokenizer.decode(row[present]) for row, present in zip(ids, mask, strict=True)]


def test_a_query_has_127_negatives(recipe: Parsed):
    """Guards against negatives that the published training did not have: those of all 128 slates of a step, 2,047."""
    arguments, loss = recipe.arguments, recipe.loss
    batch, size = arguments.per_device_train_batch_size, arguments.documents_per_slate
    assert (batch, arguments.gradient_accumulation_steps, 8 * batch * arguments.gradient_accumulation_steps) == (
        8,
        2,
        128,
    )
    assert not loss.gather_across_devices, "documents of other processes are no negatives"
    known = slates([list(range(size, 0, -1))] * batch)
    equal = info_nce(torch.zeros(batch, 4), torch.zeros(batch, size, 4), known, loss.temperature).mean()
    assert math.exp(equal.item()) - 1 == pytest.approx(127, abs=1e-3)
    assert (loss.temperature, loss.contrastive_weight, loss.listwise_weight, loss.listwise_scale) == (0.03, 1, 2, 10)
    assert (arguments.learning_rate, arguments.lr_scheduler_type, arguments.warmup_steps) == (5e-6, "linear", 0.03)


def test_golden_rows(collator: SlateCollator, tmp_path: Path):
    """Guards against training texts other than the published ones: instruction of the source, last line, EOS."""
    path = write(tmp_path / "rows.jsonl", GOLDEN["rows"])
    data, _ = load_training_data([path])
    for row in GOLDEN["rows"]:
        (slate,) = [slate for slate in read_rankings(path) if slate.source == row["source"]]
        assert data[row["source"]]["query"] == [row["query"]], "the name of the data set is that of the source"
        values = {name: getattr(slate, name) for name in ("query", "documents", "labels", "gold")}
        batch = collator([values | {"dataset_name": slate.source}])
        assert texts(collator.model, batch, "query") == [row["query_text"]]
        assert texts(collator.model, batch, "listwise") == [row["listwise_text"]]
        assert texts(collator.model, batch, "documents") == [text + "<|endoftext|>" for text in row["document"]]
        order = sorted(range(3), key=lambda place: -SlateLabels.unpack(batch["label"]).labels[0, place])
        assert [place + 1 for place in order] == row["ranking"]


def test_ids_equal_the_whole_string(collator: SlateCollator):
    """Guards against tokens that only the parts of a prompt have."""
    row = GOLDEN["rows"][2]
    values = {"labels": [2.0, 1.0, 0.0], "gold": [False] * 3, "dataset_name": row["source"]}
    batch = collator([{"query": row["query"], "documents": row["document"], **values}])
    for column in ("query", "listwise"):
        whole = collator.model.tokenizer(
            row[f"{column}_text"], add_special_tokens=False, split_special_tokens=False, return_tensors="pt"
        )
        assert torch.equal(batch[f"{column}_input_ids"], whole["input_ids"])


def test_losses_equal_the_reference():
    """Guards against another formula: rank 1 is the positive, all others are negative; a mean of all pairs."""
    golden = GOLDEN["losses"]
    queries, prompts, documents = (torch.tensor(golden[name]).double() for name in ("query", "listwise", "documents"))
    labels = [[float(-ranking.index(place)) for place in range(1, 5)] for ranking in golden["ranking"]]
    known = slates(labels)
    contrastive = info_nce(queries, documents, known, temperature=0.03).mean()
    assert contrastive.item() == pytest.approx(golden["contrastive"], abs=2e-6)
    scores = torch.einsum("bd,bnd->bn", normalize(prompts, dim=-1), normalize(documents, dim=-1))
    assert ranknet(scores, known.labels, scale=10.0).mean().item() == pytest.approx(golden["ranknet"], abs=2e-6)


def test_losses_by_hand():
    """Guards against the wrong mean: N(N-1)/2 pairs in the reference's mean, N in the paper's formula."""
    size, scale = 16, 10.0
    scores = torch.arange(size, 0, -1).double()[None] / 100  # each document is 0.01 above the next
    labels = torch.arange(size, 0, -1).float()[None]
    pairs = [math.log1p(math.exp(-scale * 0.01 * distance)) * (size - distance) for distance in range(1, size)]
    average = ranknet(scores, labels, scale)
    assert average.number == 120
    assert average.mean().item() == pytest.approx(sum(pairs) / 120, abs=1e-9)
    assert average.total.item() / size == pytest.approx(sum(pairs) / size, abs=1e-9)


def test_the_trainer_words_each_source_its_own_way(tiny: E2Rank, tmp_path: Path):
    """Guards against instructions that the trainer loses, or gives to another source, and a changed model."""
    rows = [row | {"source": name} for name in ("nq", "msmarco") for row in toy_rows(4, seed=len(name))]
    flags = ["--train", write(tmp_path / "rows.jsonl", rows), "--output_dir", str(tmp_path / "run")]
    flags += ["--per_device_train_batch_size", "2", "--bf16", "false", "--use_cpu", "true"]
    parsed = parse_settings([str(RECIPE), *flags, "--gradient_checkpointing", "false"])
    data, _ = load_training_data(parsed.settings.train)
    model = copy.deepcopy(tiny)
    trainer = E2RankTrainer(model, parsed.arguments, train_dataset=data, loss_options=parsed.loss)
    of = {row["query"]: row["source"] for row in rows}
    seen = set()
    for batch in trainer.get_train_dataloader():
        for query, prompt in zip(texts(model, batch, "query"), texts(model, batch, "listwise"), strict=True):
            name = of[query.partition("Query:")[2].removesuffix("<|endoftext|>")]
            retrieval, listwise = parsed.arguments.source_instructions[name]
            assert query.startswith(f"Instruct: {retrieval}\nQuery:")
            assert prompt.startswith(f"<|im_start|>user\n{listwise}:\nDocuments:\n[1] ")
            seen.add(name)
    assert seen == {"nq", "msmarco"}
    trainer.train()
    assert model.listwise.prompt_format == "evaluation", "the form of training is not that of reranking"
    assert model.prompts["query"] == tiny.prompts["query"]


def test_published_instructions_are_whole(recipe: Parsed):
    """Guards against a pair that a missing comma made one string, of which "G" and "i" were left."""
    instructions = recipe.arguments.source_instructions
    assert len(instructions) == 11 + 1
    for retrieval, listwise in instructions.values():
        assert "etrieval" in retrieval and "rerank" in listwise
        assert min(len(retrieval.split()), len(listwise.split())) >= 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instructions": {"nq": "Gi"}}, "of the source 'nq' are 'Gi'; give a list of two sentences"),
        ({"instructions": {"nq": ["Find it", "G"]}}, "give a list of two sentences"),
        ({"instructions": {"nq": ["Find it", "Sort it", "Go on"]}}, "give a list of two sentences"),
        ({"prompt": {"name": "mine", "template": "{documents}"}}, "needs the fields"),
    ],
)
def test_wrong_wordings_are_refused(tiny: E2Rank, options: dict[str, Any], message: str):
    """Guards against a training run with instructions of one letter."""
    with pytest.raises(ValueError, match=message):
        SlateCollator(model=tiny, **options)


def test_sources_without_instructions_are_refused(tiny: E2Rank, bundled: E2Rank, tmp_path: Path):
    """Guards against a source that is trained with another wording than the file says, and one without a place."""
    rows = [row | {"source": name} for name in ("nq", "web") for row in toy_rows(2)]
    flags = [
        "--train",
        write(tmp_path / "rows.jsonl", rows),
        "--output_dir",
        str(tmp_path / "run"),
        "--use_cpu",
        "true",
    ]
    parsed = parse_settings([*flags, "--source_instructions", '{"nq": ["Find it", "Sort it"]}'])
    data, _ = load_training_data(parsed.settings.train)
    with pytest.raises(ValueError, match="The sources web have no instructions; there are some for nq"):
        E2RankTrainer(copy.deepcopy(tiny), parsed.arguments, train_dataset=data)
    with pytest.raises(ValueError, match="has no place for an instruction by source"):
        SlateCollator(model=bundled, instructions={"default": ["Find it", "Sort it"]})
    for flag in ("--source_instructions", "--training_prompt"):
        with pytest.raises(ValueError, match=f"{flag[2:]} must be a mapping, or as a flag a JSON object; got 'nq'"):
            parse_settings([*flags, flag, "nq"])
