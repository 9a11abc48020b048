"""Sentence-Transformers' trainer, for slates: by default with their collator, loss and sampler.

A run that was killed at any moment resumes from its last complete checkpoint, see :mod:`e2rank_st.training.resuming`.
It ends with the weights of a run that was never interrupted.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.training_args import BatchSamplers, MultiDatasetBatchSamplers
from torch import Tensor, nn
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from e2rank_st.adapters import WEIGHTS as ADAPTER
from e2rank_st.adapters import fill_adapter
from e2rank_st.model import E2Rank
from e2rank_st.search.texts import TextVectors
from e2rank_st.training.collator import SlateCollator
from e2rank_st.training.fields import mapping, setting
from e2rank_st.training.labels import Lessons
from e2rank_st.training.losses import CachedE2RankLoss, E2RankLoss, LossOptions
from e2rank_st.training.resuming import CheckpointMarker, check_checkpoint, last_checkpoint
from e2rank_st.training.sampler import SourceBatchSampler

__all__ = ["E2RankTrainer", "E2RankTrainingArguments"]

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
WITHOUT_BEST = "Put it back, or resume with load_best_model_at_end false to end with the last weights."


@dataclass
class E2RankTrainingArguments(SentenceTransformerTrainingArguments):
    """Arguments of Sentence-Transformers' trainer, and those of E2Rank's collator.

    Each field's help text is in its metadata.
    """

    documents_per_slate: int = setting(
        16, "Most documents of a slate that are scored; of a longer slate some are drawn."
    )
    random_prompt_size: float = setting(0.0, "Share of prompts that show a random number of documents, from 1 to K.")
    training_prompt: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Form of the listwise prompt in training alone: name, template, and perhaps document, separator, "
            "chat. The model keeps its own form for reranking, which is by default also that of training."
        },
    )
    source_instructions: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "For the name of each source, or 'default', two instructions for training: that of the query, and "
            "that of the listwise prompt. By default all sources have the model's."
        },
    )

    def __post_init__(self) -> None:
        """Check the values that nothing else checks."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.training_prompt = mapping("training_prompt", self.training_prompt)
        self.source_instructions = mapping("source_instructions", self.source_instructions)
        # CheckpointMarker deletes old checkpoints: transformers' trainer does it before the new one is complete.
        self.checkpoint_limit, self.save_total_limit = self.save_total_limit, None
        if self.load_best_model_at_end and self.save_strategy == "steps" and self.save_steps != self.eval_steps:
            logger.warning(
                "Got save_steps=%s and eval_steps=%s: the best evaluation may be at a step without a checkpoint. The "
                "run would then end with different weights; give both the same value.",
                self.save_steps,
                self.eval_steps,
            )


class E2RankTrainer(SentenceTransformerTrainer):
    """Trains an E2Rank model on slates.

    The arguments are those of ``SentenceTransformerTrainer``. The data sets have the rows of
    :class:`~e2rank_st.training.collator.SlateCollator`. A ``DatasetDict`` gives batches of a single source.

    Args:
        *args: For ``SentenceTransformerTrainer``.
        loss_options: Options of the loss, where no ``loss`` is given; by default those of stage II.
        frozen: The documents with the vectors that they keep, for a loss that freezes them.
        frozen_queries: The queries with theirs, where a prompt adapter is trained.
        **kwargs: For ``SentenceTransformerTrainer``.

    Raises:
        ValueError: The loss freezes documents and there are no vectors, or the reverse; or a data set teaches nothing.
    """

    data_collator_class: Any = SlateCollator
    training_args_class = E2RankTrainingArguments
    args: E2RankTrainingArguments
    model: E2Rank

    def __init__(
        self,
        *args: Any,
        loss_options: LossOptions | None = None,
        frozen: TextVectors | None = None,
        frozen_queries: TextVectors | None = None,
        **kwargs: Any,
    ) -> None:
        self._loss_options, self._frozen, self._frozen_queries = loss_options or LossOptions(), frozen, frozen_queries
        self._samplers = WeakSet[SourceBatchSampler]()
        self._resumed_from: Path | None = None
        self._loaded_from: Path | None = None
        self._was_evaluated = False
        super().__init__(*args, **kwargs)
        if isinstance(self.loss, E2RankLoss):
            if self.loss.options.freeze_documents != (frozen is not None):
                got = "no vectors" if frozen is None else "vectors"
                raise ValueError(
                    f"Got freeze_documents={self.loss.options.freeze_documents} and {got} of documents; give both, or "
                    "neither."
                )
            if isinstance(self.data_collator, SlateCollator):
                self.data_collator.columns = self.loss.columns
            _check_lessons(self.train_dataset, self.loss.options)
        if isinstance(self.data_collator, SlateCollator) and isinstance(self.train_dataset, dict):
            self.data_collator.check_sources(self.train_dataset)
        if self._is_sharded and isinstance(self.data_collator, SlateCollator):
            self.data_collator.fill_up = True  # each pass gathers weights, so all processes make the same passes
        self.add_callback(_Beginnings(self))
        self.add_callback(CheckpointMarker(self.accelerator, self.args.checkpoint_limit))

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def get_default_loss(self, model: E2Rank) -> nn.Module:  # type: ignore[override]  # the trainer passes this class
        """The loss that the options describe."""
        options = self._loss_options
        kind = E2RankLoss if options.mini_batch_size is None else CachedE2RankLoss
        return kind(model, options, _reference(model) if options.guard_weight else None)

    def get_data_collator(self, model: E2Rank, args: E2RankTrainingArguments, processing_class: Any = None) -> Any:  # type: ignore[override]
        """The collator that the arguments describe."""
        return SlateCollator(
            model=model,
            documents_per_slate=args.documents_per_slate,
            random_prompt_size=args.random_prompt_size,
            prompt=mapping("training_prompt", args.training_prompt),
            instructions=mapping("source_instructions", args.source_instructions),
            seed=args.seed,
            frozen=self._frozen,
            frozen_queries=self._frozen_queries,
        )

    def should_dataset_name_column_be_added(self, dataset: Any, args: Any, loss: Any) -> bool:
        """Also where instructions go by source: the collator then has to know a row's."""
        by_source = isinstance(dataset, dict) and bool(args.source_instructions)
        return by_source or bool(super().should_dataset_name_column_be_added(dataset, args, loss))

    def get_batch_sampler(
        self, dataset: Any, batch_size: int, drop_last: bool, *args: Any, **kwargs: Any
    ) -> BatchSampler | None:
        """One source's batches, reproducible by epoch; a different sampler if the arguments name one."""
        if self.args.batch_sampler != BatchSamplers.BATCH_SAMPLER or not isinstance(dataset, Sized):
            return super().get_batch_sampler(dataset, batch_size, drop_last, *args, **kwargs)
        return self._sampler(dataset, batch_size, drop_last)

    def get_multi_dataset_batch_sampler(
        self, dataset: ConcatDataset[Any], batch_samplers: list[BatchSampler], *args: Any, **kwargs: Any
    ) -> BatchSampler:
        """Batches of a single source over all processes; a different sampler if the arguments name one."""
        is_ours = all(isinstance(sampler, SourceBatchSampler) for sampler in batch_samplers)
        if self.args.multi_dataset_batch_sampler != MultiDatasetBatchSamplers.PROPORTIONAL or not is_ours:
            return super().get_multi_dataset_batch_sampler(dataset, batch_samplers, *args, **kwargs)
        return self._sampler(dataset, batch_samplers[0].batch_size, batch_samplers[0].drop_last)

    def _sampler(self, dataset: Sized, batch_size: int, drop_last: bool) -> SourceBatchSampler:
        sampler = SourceBatchSampler(dataset, batch_size, drop_last, self.args.seed, self.args.world_size)
        self._samplers.add(sampler)
        return sampler

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers and collator which epoch begins, from 0; the training loop does so by itself."""
        for sampler in self._samplers:
            sampler.set_epoch(epoch)
        if isinstance(self.data_collator, SlateCollator):
            self.data_collator.set_epoch(epoch)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        """Count epochs and steps; a run that resumes at its last step has no epoch left.

        Transformers' trainer would enter the last epoch and train a step too many.
        """
        values = super().set_initial_training_values(args, dataloader)
        steps_per_epoch, max_steps = values[1], values[-1]
        resumed = self._resumed_state()
        if resumed is not None and resumed.global_step >= max_steps:
            return (resumed.global_step // steps_per_epoch, *values[1:])
        return values

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; arguments and result are those of ``transformers.Trainer.train``.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the last complete one in the output folder.
            *args: Passed on.
            **kwargs: Passed on.

        Raises:
            ValueError: The checkpoint to resume from or the best one is not complete, gone or damaged, or several
                processes have evaluated the model before training.
        """
        if resume_from_checkpoint is True:
            found = last_checkpoint(str(self.args.output_dir))
            if found is None:
                raise ValueError(
                    f"{self.args.output_dir} has no complete checkpoint to resume from; start without resuming."
                )
            resume_from_checkpoint = str(found)
        elif resume_from_checkpoint:
            check_checkpoint(Path(resume_from_checkpoint), "Resume from a complete one, or start anew.")
        if self._was_evaluated and self.model_wrapped is self.model and self.args.world_size > 1:
            # Accelerate takes an evaluated model for one that it has wrapped. Each process would train by itself.
            raise ValueError(
                "The model was evaluated before training, in several processes. Leave that out, and give "
                "eval_on_start=True instead."
            )
        self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        best = self.state.best_model_checkpoint
        # Sentence-Transformers' trainer logs that it could not load it, and ends with the last weights.
        if self.args.load_best_model_at_end and best is not None and self._loaded_from != Path(best):
            raise ValueError(f"The best checkpoint, {best}, could not be loaded; the log says why.")
        return result

    def _resumed_state(self) -> TrainerState | None:
        """The state of the checkpoint that the run is resumed from."""
        if self._resumed_from is None or not (self._resumed_from / STATE_FILE).exists():
            return None
        state: TrainerState = TrainerState.load_from_json(str(self._resumed_from / STATE_FILE))
        return state

    def find_best(self, state: TrainerState) -> None:
        """Find the best checkpoint of a run that is resumed, also if its folder has moved.

        Args:
            state: The state as transformers' trainer has read it: without the best checkpoint if that has moved.

        Raises:
            ValueError: It is gone, and would be wanted in the end.
        """
        resumed = self._resumed_state()
        if self._resumed_from is None or resumed is None or resumed.best_model_checkpoint is None:
            return
        beside = self._resumed_from.parent / Path(resumed.best_model_checkpoint).name
        if beside.is_dir():
            state.best_model_checkpoint = str(beside)
            if self.args.load_best_model_at_end:
                check_checkpoint(beside, f"It is the best one so far. {WITHOUT_BEST}")
        elif self.args.load_best_model_at_end and state.best_model_checkpoint is None:
            raise ValueError(f"The best checkpoint so far, {beside}, is gone. {WITHOUT_BEST}")

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint, or None. A better evaluation may have been at a step without a checkpoint."""
        best = self.state.best_model_checkpoint
        return None if best is None else int(best.rpartition("-")[2])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; arguments and result are those of ``transformers.Trainer.evaluate``."""
        self._was_evaluated = self._was_evaluated or not self.is_in_train
        if self.is_fsdp_enabled:
            # Shards are gathered into buffers that the first forward pass makes. Those made in inference mode, in which
            # texts are embedded, could not be trained with.
            token = torch.ones(1, 1, dtype=torch.int64, device=self.args.device)
            with torch.no_grad():
                self.model({"input_ids": token, "attention_mask": token})
        return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model: the main process does, with the weights of all processes.

        Args:
            output_dir: Where to; by default the output folder.
            _internal_call: Whether transformers' trainer calls, which then pushes nothing to the Hub.
        """
        if self._is_sharded:
            weights = self.accelerator.get_state_dict(self.model_wrapped)  # each process gives its part
            if self.args.should_save:
                _save_weights(self.model, weights, str(output_dir or self.args.output_dir))
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub()
        elif self.args.should_save:
            super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Take the weights of a checkpoint, to resume from it or because it is the best.

        This is the one private method of transformers that this package overrides. Sentence-Transformers' version asks
        the Hub for the base of an adapter, rounds the adapter to the precision of that base, and cannot load a model
        that is spread over processes. A test holds it against the versions that ``pyproject.toml`` allows.
        """
        folder = Path(resume_from_checkpoint)
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, str(folder))
        elif self.is_fsdp_enabled:
            from accelerate.utils import load_fsdp_model

            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, self.accelerator, self.model if model is None else model, str(folder))
        elif (folder / ADAPTER).exists():
            fill_adapter(self.model.transformers_model, folder / ADAPTER)  # its base has not changed
        else:
            self.model.load_state_dict(E2Rank(str(folder), device="cpu").state_dict())
        self._loaded_from = folder


class _Beginnings(TrainerCallback):
    """Tells the trainer when a run and an epoch begin."""

    def __init__(self, trainer: E2RankTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.find_best(state)
        self.trainer._loaded_from = None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.set_epoch(int(state.epoch or 0))


def _check_lessons(data: Any, options: LossOptions) -> None:
    """Refuse a data set from which the loss learns nothing: its loss would be 0, which looks like success."""
    parts: Mapping[str, Any] = data if isinstance(data, Mapping) else {"train": data}
    for name, part in parts.items():
        if not hasattr(part, "__len__") or not {"labels", "gold"} <= set(getattr(part, "column_names", ())):
            continue  # of another form, for another collator
        lessons = (Lessons.of(*slate) for slate in zip(part["labels"], part["gold"], strict=True))
        if not any(getattr(lesson, wanted) for lesson in lessons for wanted in options.weights):
            raise ValueError(
                f"The data set {name!r} teaches nothing: none of its {len(part)} slates has the labels or gold "
                f"documents that the losses {', '.join(options.weights)} need."
            )


def _save_weights(model: E2Rank, weights: Mapping[str, Tensor], folder: str) -> None:
    """Write a model with weights that were gathered from all processes."""
    backbone: Any = model.transformers_model
    name = next(name for name, module in model.named_modules() if module is backbone)
    own = {key.removeprefix(f"{name}."): value for key, value in weights.items()}
    # Only the backbone's own save_pretrained takes weights, and the model calls it without any.
    backbone.save_pretrained = partial(backbone.save_pretrained, state_dict=own)
    try:
        # Without a card, whose example would be embedded by all processes.
        model.save_pretrained(folder, create_model_card=False)
    finally:
        del backbone.save_pretrained


def _reference(model: E2Rank) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """The model as it is now: a frozen copy, or the same model with its new adapter switched off."""
    changes = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    if not changes or any(weight.any() for weight in changes):
        return copy.deepcopy(model)

    def without_adapter(features: dict[str, Any]) -> Mapping[str, Any]:
        was_training = model.training
        model.eval()
        model.disable_adapters()
        try:
            embedded: Mapping[str, Any] = model(features)
        finally:
            model.enable_adapters()
            model.train(was_training)
        return embedded

    return without_adapter
