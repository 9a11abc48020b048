"""Sentence-Transformers' trainer, for slates: its collator, loss and sampler by default, and checkpoints that last.

A folder called ``checkpoint-{step}`` is complete: it is written under another name, and renamed once every process has
finished its part. Whatever kills a run, the last checkpoint can be resumed from, and a run that was resumed ends with
the weights of an unbroken one.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.training_args import BatchSamplers, MultiDatasetBatchSamplers
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.utils.data import BatchSampler, ConcatDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

from e2rank_st.adapters import WEIGHTS as ADAPTER
from e2rank_st.adapters import fill_adapter
from e2rank_st.model import E2Rank
from e2rank_st.search.index import Index
from e2rank_st.training.collator import SlateCollator
from e2rank_st.training.losses import CachedE2RankLoss, E2RankLoss
from e2rank_st.training.sampler import SourceBatchSampler

__all__ = ["E2RankTrainer", "E2RankTrainingArguments", "last_checkpoint"]

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"  # folder that a checkpoint is written in
STATE_FILE = "trainer_state.json"


@dataclass
class E2RankTrainingArguments(SentenceTransformerTrainingArguments):
    """Arguments of Sentence-Transformers' trainer, and those of E2Rank's collator and loss.

    Stage I of E2Rank has ``listwise_weight=0``: contrastive only. Each field's help text is in its metadata.
    """

    documents_per_slate: int = field(
        default=16, metadata={"help": "Most documents of a slate that are scored; of a longer slate some are drawn."}
    )
    num_prompt_documents: int | None = field(
        default=None, metadata={"help": "Documents in a listwise prompt, K; by default the model's."}
    )
    shuffle_prompt: float = field(
        default=0.0, metadata={"help": "Share of prompts whose documents come in random order, against position bias."}
    )
    random_prompt_size: float = field(
        default=0.0, metadata={"help": "Share of prompts that show a random number of documents, from 1 to K."}
    )
    temperature: float = field(default=0.03, metadata={"help": "Temperature of the contrastive loss."})
    contrastive_weight: float = field(
        default=1.0, metadata={"help": "Factor of the contrastive loss; 0 leaves it out."}
    )
    listwise_weight: float = field(default=2.0, metadata={"help": "Factor of the listwise loss; 0 leaves it out."})
    listwise: Literal["ranknet", "lambda", "listnet"] = field(
        default="ranknet", metadata={"help": "Listwise loss: RankNet, LambdaLoss or ListNet."}
    )
    listwise_scale: float = field(default=10.0, metadata={"help": "Factor on the cosines in the listwise loss."})
    localized_weight: float = field(
        default=0.0,
        metadata={"help": "Factor of a loss that contrasts a slate's known answers with its other documents."},
    )
    localized_scale: float = field(default=20.0, metadata={"help": "Factor on the cosines in that loss."})
    reduction: Literal["mean", "sum"] = field(
        default="mean", metadata={"help": "Of the pairs: mean over all, or sum over a slate's by its documents."}
    )
    query_weight: float | None = field(
        default=None,
        metadata={"help": "Share of the query in the vector that ranks, in the loss; by default the model's."},
    )
    freeze_documents: bool = field(
        default=False,
        metadata={"help": "Documents keep the vectors of the model before training: a step costs one prompt a slate."},
    )
    guard_weight: float = field(
        default=0.0, metadata={"help": "Factor of the guard that keeps plain embeddings near those before training."}
    )
    gather_across_devices: bool = field(
        default=True, metadata={"help": "Documents of the other processes are negatives too."}
    )
    mini_batch_size: int | None = field(
        default=None,
        metadata={"help": "Texts in a forward pass: gradient caching, memory is that of a mini-batch."},
    )
    mini_batch_num_tokens: int | None = field(
        default=None, metadata={"help": "Tokens in a forward pass: gradient caching, bounded by tokens."}
    )

    def __post_init__(self) -> None:
        """Check the values that nothing else does."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.save_total_limit == 1:
            # The host would delete the last checkpoint in the end, or the best one, and not at once.
            logger.info("save_total_limit is 2 instead of 1: the best and the last checkpoint are kept.")
            self.save_total_limit = 2
        if self.load_best_model_at_end and self.save_strategy == "steps" and self.save_steps != self.eval_steps:
            logger.warning(
                "Got save_steps=%s and eval_steps=%s: the best evaluation may be at a step without a checkpoint, and "
                "the run then ends with other weights; give both the same value.",
                self.save_steps,
                self.eval_steps,
            )

    @property
    def loss_options(self) -> dict[str, Any]:
        """Keyword arguments of :class:`~e2rank_st.training.losses.E2RankLoss`."""
        names = (
            "temperature", "contrastive_weight", "listwise_weight", "listwise", "listwise_scale", "localized_weight",
            "localized_scale", "reduction", "freeze_documents", "guard_weight", "gather_across_devices",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class E2RankTrainer(SentenceTransformerTrainer):
    """Trains an E2Rank model on slates.

    The arguments are those of ``SentenceTransformerTrainer``; the rows of the data sets are those of
    :class:`~e2rank_st.training.collator.SlateCollator`, and a ``DatasetDict`` gives batches of a single source.

    Args:
        *args: For the host trainer.
        frozen: The documents with the vectors that they keep, where the arguments freeze them.
        **kwargs: For the host trainer.

    Raises:
        ValueError: The arguments freeze the documents and there are no vectors, or the other way round.
    """

    data_collator_class: Any = SlateCollator
    training_args_class = E2RankTrainingArguments
    args: E2RankTrainingArguments

    def __init__(self, *args: Any, frozen: Index | None = None, **kwargs: Any) -> None:
        self._frozen = frozen
        self._samplers = WeakSet[SourceBatchSampler]()
        self._is_saving = False
        self._resumed_from: Path | None = None
        super().__init__(*args, **kwargs)
        if isinstance(self.data_collator, SlateCollator) and isinstance(self.loss, E2RankLoss):
            self.data_collator.columns = self.loss.columns
        if self.args.freeze_documents != (frozen is not None):
            got = "no vectors" if frozen is None else "vectors"
            raise ValueError(
                f"Got freeze_documents={self.args.freeze_documents} and {got} of documents; give both, or neither."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self._equal_passes()
        self.add_callback(_Beginnings(self))

    def get_default_loss(self, model: E2Rank) -> nn.Module:  # type: ignore[override]  # as the host calls it
        """The loss that the arguments describe."""
        args = self.args
        options = args.loss_options
        options["query_weight"] = model.listwise.query_weight if args.query_weight is None else args.query_weight
        if args.guard_weight:
            options["reference"] = _reference(model)
        if args.mini_batch_size is None and args.mini_batch_num_tokens is None:
            return E2RankLoss(model, **options)
        options |= {"mini_batch_size": args.mini_batch_size or 32, "mini_batch_num_tokens": args.mini_batch_num_tokens}
        return CachedE2RankLoss(model, **options)

    def get_data_collator(self, model: E2Rank, args: E2RankTrainingArguments, processing_class: Any = None) -> Any:  # type: ignore[override]
        """The collator that the arguments describe."""
        return SlateCollator(
            model=model,
            documents_per_slate=args.documents_per_slate,
            num_prompt_documents=args.num_prompt_documents,
            shuffle_prompt=args.shuffle_prompt,
            random_prompt_size=args.random_prompt_size,
            seed=args.seed,
            frozen=self._frozen,
        )

    def get_batch_sampler(
        self, dataset: Any, batch_size: int, drop_last: bool, *args: Any, **kwargs: Any
    ) -> BatchSampler | None:
        """One source's batches, reproducible by epoch; another sampler where the arguments name one."""
        if self.args.batch_sampler != BatchSamplers.BATCH_SAMPLER or not isinstance(dataset, Sized):
            return super().get_batch_sampler(dataset, batch_size, drop_last, *args, **kwargs)
        return self._sampler(dataset, batch_size, drop_last)

    def get_multi_dataset_batch_sampler(
        self, dataset: ConcatDataset[Any], batch_samplers: list[BatchSampler], *args: Any, **kwargs: Any
    ) -> BatchSampler:
        """Batches of a single source over all processes; another sampler where the arguments name one."""
        is_ours = all(isinstance(sampler, SourceBatchSampler) for sampler in batch_samplers)
        if self.args.multi_dataset_batch_sampler != MultiDatasetBatchSamplers.PROPORTIONAL or not is_ours:
            return super().get_multi_dataset_batch_sampler(dataset, batch_samplers, *args, **kwargs)
        return self._sampler(dataset, batch_samplers[0].batch_size, batch_samplers[0].drop_last)

    def _sampler(self, dataset: Sized, batch_size: int, drop_last: bool) -> SourceBatchSampler:
        sampler = SourceBatchSampler(dataset, batch_size, drop_last, self.args.seed, self.args.world_size)
        self._samplers.add(sampler)
        return sampler

    def _equal_passes(self) -> None:
        """Let all processes make the same forward passes: each gathers weights from the others."""
        if self.args.mini_batch_num_tokens is not None:
            raise ValueError(
                "mini_batch_num_tokens gives each process another number of mini-batches, which a model that is spread "
                "over them does not bear; give mini_batch_size instead."
            )
        if isinstance(self.data_collator, SlateCollator):
            self.data_collator.fill_up = True

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers and collator which epoch begins, from 0; the training loop does so by itself."""
        for sampler in self._samplers:
            sampler.set_epoch(epoch)
        if isinstance(self.data_collator, SlateCollator):
            self.data_collator.set_epoch(epoch)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; arguments and result are those of ``transformers.Trainer.train``.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the last one in the output folder.
            *args: Passed on.
            **kwargs: Passed on.

        Raises:
            ValueError: There is no checkpoint to resume from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(str(self.args.output_dir))
        if self.model_wrapped is self.model and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            # An evaluation marks the model as wrapped, after which the host would let each process train for itself.
            vars(self.model).pop("_is_accelerate_prepared", None)
        self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train for an epoch; a run that is resumed at its last step has none left, where the host would add one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def find_best(self, state: TrainerState) -> None:
        """Find the best checkpoint of a run that is resumed, wherever its folder is now and however it is written.

        Args:
            state: The state as the host has read it: without a best checkpoint where the old path leads nowhere.

        Raises:
            ValueError: It is gone, and would be wanted in the end; the host would go on with the last weights.
        """
        if self._resumed_from is None or not (self._resumed_from / STATE_FILE).exists():
            return
        recorded = TrainerState.load_from_json(str(self._resumed_from / STATE_FILE)).best_model_checkpoint
        if recorded is None:
            return
        beside = self._resumed_from.parent / Path(recorded).name
        if beside.is_dir():
            state.best_model_checkpoint = str(beside)
        elif self.args.load_best_model_at_end and not Path(recorded).is_dir():
            raise ValueError(
                f"The best checkpoint so far, {beside}, is gone; put it back, or resume with load_best_model_at_end "
                "false to end with the last weights."
            )

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint; None without one. A better evaluation may have been at a step without any."""
        best = self.state.best_model_checkpoint
        return None if best is None else int(best.rpartition("-")[2])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; arguments and result are those of ``transformers.Trainer.evaluate``."""
        if self.is_fsdp_enabled:
            # Shards are gathered into buffers that the first forward pass makes. Those made in inference mode, in which
            # texts are embedded, could not be trained with.
            token = torch.ones(1, 1, dtype=torch.int64, device=self.args.device)
            with torch.no_grad():
                self.model({"input_ids": token, "attention_mask": token})
        return super().evaluate(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints are; while one is being written, the folder that hides it."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder, UNFINISHED)) if self._is_saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint where nobody looks, then rename it: what has its name is complete."""
        folder = Path(self._get_output_dir(trial))
        scratch, name = folder / UNFINISHED, f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder / name)
        self.accelerator.wait_for_everyone()  # each process writes a part
        if self.args.should_save:
            self.state.save_to_json(str(scratch / name / STATE_FILE))
            if (folder / name).exists():  # a run that was started anew
                (folder / name).rename(scratch / "replaced")
            (scratch / name).rename(folder / name)
            self._rotate(folder, scratch)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        """Write the model: one process does, and with the weights that were gathered where they are sharded."""
        if not self.args.should_save:
            return
        backbone = self.model.transformers_model
        if state_dict is None or backbone is None:
            super()._save(output_dir, state_dict)
            return
        name = next(name for name, module in self.model.named_modules() if module is backbone)
        gathered = {key.removeprefix(f"{name}."): value for key, value in state_dict.items()}
        backbone.save_pretrained = partial(backbone.save_pretrained, state_dict=gathered)  # type: ignore[method-assign]
        try:
            # The host's card embeds an example, which the other processes would have to take part in.
            self.model.save_pretrained(str(output_dir), create_model_card=False)
        finally:
            del backbone.save_pretrained

    def _rotate(self, folder: Path, scratch: Path) -> None:
        """Delete the oldest checkpoints above the limit, but for the last and the best; they vanish whole."""
        checkpoints = [Path(path) for path in sort_checkpoints(str(folder))]
        kept = {f"checkpoint-{step}" for step in (self.state.global_step, self.best_step)}
        surplus = len(checkpoints) - (self.args.save_total_limit or len(checkpoints))
        for checkpoint in [path for path in checkpoints if path.name not in kept][: max(surplus, 0)]:
            checkpoint.rename(scratch / checkpoint.name)
        shutil.rmtree(scratch)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Take the weights of a checkpoint; those of an adapter's base have not changed."""
        if model is not None:  # sharded: each process has its own part
            Trainer._load_from_checkpoint(self, resume_from_checkpoint, model)
            return
        folder = Path(resume_from_checkpoint)
        if (folder / ADAPTER).exists() and not self.is_fsdp_enabled:
            fill_adapter(self.model.transformers_model, folder / ADAPTER)
            return
        weights = E2Rank(resume_from_checkpoint, device="cpu").state_dict()
        if self.is_fsdp_enabled:
            set_model_state_dict(self.model, weights, options=StateDictOptions(full_state_dict=True))
        else:
            self.model.load_state_dict(weights)

    def _load_best_model(self) -> None:
        """Take the weights of the best checkpoint; the host would go on with the last ones where that fails."""
        if self.is_deepspeed_enabled:
            Trainer._load_best_model(self)
            return
        best = Path(str(self.state.best_model_checkpoint))
        logger.info("The best checkpoint is %s, with %s.", best, self.state.best_metric)
        self.model.model_card_data.set_best_model_step(self.best_step or 0)
        self._load_from_checkpoint(str(best))


class _Beginnings(TrainerCallback):
    """Tells the trainer when a run and an epoch begin: the host tells some of its parts, not all on every path."""

    def __init__(self, trainer: E2RankTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.find_best(state)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.set_epoch(int(state.epoch or 0))


def last_checkpoint(folder: str | os.PathLike[str]) -> str:
    """Find the last checkpoint of a run.

    Args:
        folder: The output folder.

    Raises:
        ValueError: There is none.
    """
    found = get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None
    if found is None:
        raise ValueError(f"There is no checkpoint in {folder} to resume from; start without resuming.")
    return str(found)


def _reference(model: E2Rank) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """The model as it is now: a frozen copy, or the same one with its new adapter switched off."""
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
