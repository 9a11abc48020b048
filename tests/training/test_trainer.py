"""Training: what is learned, and what transformers' trainer is asked for."""

import copy
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from e2rank_st import E2Rank
from e2rank_st.evaluation.evaluator import RerankingEvaluator
from e2rank_st.training.losses import CachedE2RankLoss, E2RankLoss, LossOptions
from e2rank_st.training.trainer import E2RankTrainer, E2RankTrainingArguments
from tests import ROOT
from tests.toy import toy_rows, with_adapter, with_trained_adapter
from tests.training.trainers import as_slates, datasets, logged, toy_trainer


def test_frozen_documents_need_vectors(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against a run that freezes nothing, or trains on vectors of which it knows nothing."""
    trainer = toy_trainer(copy.deepcopy(tiny), tmp_path, loss={"freeze_documents": True})
    assert trainer.data_collator.frozen is not None
    options = {"train_dataset": trainer.train_dataset}
    with pytest.raises(ValueError, match="freeze_documents=True and no vectors"):
        E2RankTrainer(tiny, trainer.args, loss_options=LossOptions(freeze_documents=True), **options)
    with pytest.raises(ValueError, match="freeze_documents=False and vectors"):
        E2RankTrainer(tiny, trainer.args, frozen=trainer.data_collator.frozen, **options)


def test_data_sets_that_teach_nothing_are_refused(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against a run to "loss 0" that reports success, from data that no reader has seen."""
    rows = [row | {"labels": [None] * len(row["labels"])} for row in toy_rows(4)]
    known = datasets.Dataset.from_list(rows)
    for weights in ({"contrastive_weight": 0}, {"contrastive_weight": 0, "listwise_weight": 0, "localized_weight": 1}):
        data = datasets.DatasetDict({"toy": known.map(lambda row: {"gold": [False] * len(row["gold"])})})
        with pytest.raises(ValueError, match="The data set 'toy' teaches nothing: none of its 4 slates has the labels"):
            toy_trainer(tiny, tmp_path, data, loss=weights)
    toy_trainer(tiny, tmp_path, datasets.DatasetDict({"toy": known}))  # its gold documents teach the contrastive loss


def test_overfits_one_batch(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against labels, prompts or documents that do not belong together: nothing could be learned by heart."""
    rows = toy_rows(4, seed=3)
    evaluator = RerankingEvaluator.from_slates(as_slates(rows), name="same", own_first_stage=True)
    model = copy.deepcopy(tiny)
    before = evaluator(model)
    assert before["same_listwise_ndcg@10"] < 0.9, "the premise"
    data = datasets.DatasetDict({"toy": datasets.Dataset.from_list(rows)})
    trainer = toy_trainer(model, tmp_path, data, per_device_train_batch_size=4, max_steps=25, learning_rate=3e-3)
    trainer.train()
    after = evaluator(model)
    assert after["same_listwise_ndcg@10"] == after["same_embedding_ndcg@10"] == 1.0
    losses = logged(trainer)
    assert losses[-1] < 0.1 * losses[0]
    assert {"contrastive", "listwise"} <= trainer.state.log_history[0].keys(), "the parts are logged"


def test_single_source_batches_by_default(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against negatives of other sources, and against the library's samplers where the arguments name them."""
    trainer = toy_trainer(copy.deepcopy(tiny), tmp_path)
    rows = list(trainer.get_train_dataloader().batch_sampler)
    assert all(len({row < 9 for row in batch}) == 1 for batch in rows)
    named = toy_trainer(copy.deepcopy(tiny), tmp_path, batch_sampler="no_duplicates")
    assert type(named.get_train_dataloader().batch_sampler).__name__ == "ProportionalBatchSampler"


def test_options_make_the_loss_and_the_collator(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against settings that are read and forgotten."""
    options = {"temperature": 0.1, "listwise_scale": 5.0, "contrastive_weight": 0.5}
    plain = toy_trainer(tiny, tmp_path, loss=options)
    assert type(plain.loss) is E2RankLoss
    assert plain.loss.options == LossOptions(**options)
    options = {"mini_batch_size": 5, "listwise_weight": 0}
    cached = toy_trainer(tiny, tmp_path, loss=options, documents_per_slate=3, random_prompt_size=0.5, seed=5)
    assert type(cached.loss) is CachedE2RankLoss
    assert cached.loss.mini_batch_size == 5
    assert cached.data_collator.columns == ("query", "documents")
    collator = cached.data_collator
    assert (collator.documents_per_slate, collator.random_prompt_size, collator.seed) == (3, 0.5, 5)


@pytest.mark.parametrize("make", [copy.deepcopy, with_adapter, with_trained_adapter])
def test_guard_looks_at_the_model_before_training(
    tiny: E2Rank, tmp_path: Path, make: Callable[[E2Rank], E2Rank]
) -> None:
    """Guards against a reference that is trained along, draws dropout, or leaves the adapter switched off."""
    model = make(tiny)
    before = copy.deepcopy(model).eval()
    trainer = toy_trainer(model, tmp_path, loss={"guard_weight": 1.0}, max_steps=3, learning_rate=1e-2)
    trainer.train()
    guards = logged(trainer, "guard")
    assert guards[-1] > guards[0]
    assert guards[-1] > 1e-3
    batch = trainer.data_collator(toy_rows(2))
    features = {name: batch[f"query_{name}"] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        kept = trainer.loss.reference(dict(features))["sentence_embedding"]
        torch.testing.assert_close(kept, before(dict(features))["sentence_embedding"])
        moved = model.eval()(dict(features))["sentence_embedding"]
    assert not torch.allclose(kept, moved, atol=1e-3)


def test_accumulation_and_bfloat16_train(tiny: E2Rank, tmp_path: Path) -> None:
    """Guards against mixed precision or accumulated gradients that the loss does not bear; weights stay float32."""
    model = copy.deepcopy(tiny)
    options = {"bf16": True, "gradient_accumulation_steps": 2, "activation_checkpointing": True, "max_steps": 4}
    trainer = toy_trainer(model, tmp_path, **options)
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# --- transformers' trainer --------------------------------------------------------------------------------------------


def test_evaluation_before_training_is_refused_in_several_processes(
    tiny: E2Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against processes that train each for itself: accelerate takes an evaluated model for a wrapped one."""
    trainer = toy_trainer(
        copy.deepcopy(tiny), tmp_path, evaluator=RerankingEvaluator.from_slates(as_slates(toy_rows(2))), max_steps=1
    )
    trainer.evaluate()
    with monkeypatch.context() as patch:
        patch.setattr(E2RankTrainingArguments, "world_size", 2)
        with pytest.raises(ValueError, match="give eval_on_start=True instead"):
            trainer.train()
    trainer.train()


def test_one_private_method_is_overridden() -> None:
    """Guards against a release of transformers or Sentence-Transformers that calls its private methods otherwise.

    ``_load_from_checkpoint`` is the only one that is overridden here; the requirements end where it may change.
    """
    own, bases = vars(E2RankTrainer), E2RankTrainer.__mro__[1:]
    private = {name for name in own if name.startswith("_") and not name.startswith("__") and callable(own[name])}
    assert {name for name in private if any(hasattr(base, name) for base in bases)} == {"_load_from_checkpoint"}
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {needed.name: needed.specifier for needed in map(Requirement, project["dependencies"])}
    for name in ("transformers", "sentence-transformers"):
        assert any(clause.operator == "<" for clause in required[name]), f"{name} has an upper bound"
        assert required[name].contains(importlib.metadata.version(name)), f"{name} is within it"
