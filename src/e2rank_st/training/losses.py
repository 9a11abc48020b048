"""Embeddings of queries, listwise prompts and documents → the losses that E2Rank is trained with.

``L = contrastive_weight · InfoNCE(e_q, e_d) + listwise_weight · RankNet(e_l, e_d)`` (E2Rank, arXiv 2510.22733). The
first part alone is stage I, both together are stage II. ``localized_weight · LCE(e_l, e_d)`` can be added for slates
that know the answer and no order. The formulas are in :mod:`e2rank_st.training.objectives`. :class:`E2RankLoss` embeds
and adds up; :class:`CachedE2RankLoss` does the same with the memory of one mini-batch.

Axes: B queries, N documents of the longest slate, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn

from e2rank_st.embedding_e2rank import interpolate
from e2rank_st.model import E2Rank
from e2rank_st.training.fields import setting
from e2rank_st.training.labels import SlateLabels
from e2rank_st.training.objectives import Pool, drift, info_nce, localized, ranknet

__all__ = ["COLUMNS", "CachedE2RankLoss", "E2RankLoss", "LossOptions"]

COLUMNS = ("query", "listwise", "documents", "guarded")
CITATION = """
@misc{liu2025e2rank,
    title={E2Rank: Your Text Embedding can Also be an Effective and Efficient Listwise Reranker},
    author={Qi Liu and Yanzhao Zhang and Mingxin Li and Dingkun Long and Pengjun Xie and Jiaxin Mao},
    year={2025},
    eprint={2510.22733},
    archivePrefix={arXiv},
    primaryClass={cs.CL},
    url={https://arxiv.org/abs/2510.22733},
}
"""


@dataclass(frozen=True)
class LossOptions:
    """Options of the loss. Stage I of E2Rank has ``listwise_weight=0``. Each field's help text is in its metadata.

    Raises:
        ValueError: A value is not allowed, or nothing would be trained.
    """

    temperature: float = setting(0.03, "Temperature of the contrastive loss.")
    contrastive_weight: float = setting(1.0, "Factor of the contrastive loss; 0 leaves it out.")
    listwise_weight: float = setting(2.0, "Factor of the listwise loss, RankNet; 0 leaves it out.")
    listwise_scale: float = setting(10.0, "Factor on the cosines in the listwise loss.")
    localized_weight: float = setting(
        0.0, "Factor of a loss that contrasts a slate's known answers with its remaining documents."
    )
    localized_scale: float = setting(20.0, "Factor on the cosines in that loss.")
    guard_weight: float = setting(0.0, "Factor of the guard that keeps plain embeddings near those before training.")
    freeze_documents: bool = setting(
        False, "Documents keep the vectors of the model before training: a step costs one prompt a slate."
    )
    gather_across_devices: bool = setting(
        True,
        "Documents of all processes are negatives, and means are taken over all processes: they train as "
        "one process with the whole batch would.",
    )
    mini_batch_size: int | None = setting(
        None, "Texts in a forward pass: gradient caching, with the memory of a mini-batch."
    )

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("temperature", "listwise_scale", "localized_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {getattr(self, name)}.")
        for name in ("contrastive_weight", "listwise_weight", "localized_weight", "guard_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}.")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size must be at least 1, got {self.mini_batch_size}.")
        if not self.contrastive_weight and not self.trains_prompts:
            raise ValueError(
                "contrastive_weight, listwise_weight and localized_weight are all 0: nothing would be trained. Raise "
                "one."
            )

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the losses that learn from labels, without those that are left out."""
        weights = {name: float(getattr(self, f"{name}_weight")) for name in ("contrastive", "listwise", "localized")}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def trains_prompts(self) -> bool:
        """Whether listwise prompts are trained."""
        return bool(self.listwise_weight or self.localized_weight)


class E2RankLoss(nn.Module):
    """InfoNCE between queries and documents, plus RankNet between listwise prompts and their documents.

    Its inputs are columns, each as the model's ``preprocess`` gives it: B queries, B listwise prompts, the documents of
    all slates, B·N rows, and with frozen documents the G texts that are guarded. :attr:`columns` names those that the
    options call for. The labels come from :meth:`SlateLabels.pack`.

    The listwise loss trains the vector that reranking uses: the model's ``query_weight`` is the share of the query in
    it, see :class:`~e2rank_st.modeling_e2rank.ListwiseRerank`.

    With ``freeze_documents`` the column of documents holds their vectors before training, ``(B·N, D)`` as
    ``sentence_embedding``, and not their texts; that of queries may hold theirs. The guard then watches the
    column ``guarded`` instead of the documents.

    Args:
        model: The model to train.
        options: The options; by default those of stage II.
        reference: The guard measures the mean :func:`drift` of queries and documents from this model: a frozen model,
            or a function from a column to a dict with ``"sentence_embedding"``, such as the model with its adapter
            switched off. A model is set to evaluation and loses its gradients.

    Raises:
        ValueError: A guard lacks its reference or a reference its guard, or the options are for the cached loss.
    """

    def __init__(
        self,
        model: E2Rank,
        options: LossOptions | None = None,
        reference: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options or LossOptions()
        self.query_weight = model.listwise.query_weight  # kept: several processes wrap the model
        self.mini_batch_size = cast("int", self.options.mini_batch_size)  # where CachedLossMixin looks for it
        if (self.options.mini_batch_size is None) == isinstance(self, CachedLossMixin):
            raise ValueError(
                f"Got mini_batch_size={self.options.mini_batch_size} for {type(self).__name__}; give it to "
                "CachedE2RankLoss, and only to that one."
            )
        guard_weight = self.options.guard_weight
        if bool(guard_weight) != (reference is not None):
            got = "no" if reference is None else "a"
            raise ValueError(f"Got guard_weight={guard_weight} and {got} reference; give both, or neither.")
        self.reference = _frozen(reference, model) if isinstance(reference, nn.Module) else reference

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the input columns that the options call for, in their order."""
        options, prompts = self.options, self.options.trains_prompts
        needed = {
            "query": options.contrastive_weight or options.guard_weight or (prompts and self.query_weight),
            "listwise": prompts,
            "documents": True,
            "guarded": options.guard_weight and options.freeze_documents,
        }
        return tuple(name for name in COLUMNS if needed[name])

    @property
    def _guarded(self) -> tuple[str, str]:
        return ("query", "guarded" if self.options.freeze_documents else "documents")

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> dict[str, Tensor]:
        """Embed the columns and compute the parts of the loss.

        Args:
            sentence_features: Those of :attr:`columns`, in their order.
            labels: ``(B, N, 3)`` int64, see :meth:`SlateLabels.pack`.

        Returns:
            As :meth:`compute_loss_from_embeddings`.

        Raises:
            ValueError: The columns or the labels are not of that form.
        """
        columns, slates = self._columns(sentence_features), SlateLabels.unpack(labels)
        reference = self._reference_embeddings(columns)
        embeddings = self._frozen_embeddings(columns)
        for name in (name for name in columns if name not in embeddings):
            embeddings[name] = self.model(dict(columns[name]))["sentence_embedding"]
        return self.compute_loss_from_embeddings(embeddings, slates, reference)

    def compute_loss_from_embeddings(
        self, embeddings: Mapping[str, Tensor], slates: SlateLabels, reference: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Compute the parts of the loss, in float32 at least, also under autocast: bfloat16 cosines tie.

        Args:
            embeddings: By column: ``query`` and ``listwise`` ``(B, D)``, ``documents`` ``(B·N, D)``, ``guarded``
                ``(G, D)``.
            slates: Labels, known positives and texts of the documents.
            reference: For the guard, the reference's embeddings of ``query`` and ``documents``, or ``guarded``.

        Returns:
            Scalars, already weighted: those of ``contrastive``, ``listwise``, ``localized`` and ``guard`` whose weight
            is not 0.

        Raises:
            ValueError: The number of rows of a column does not fit the labels.
        """
        for name, vectors in ((name, embeddings[name]) for name in embeddings if name != "guarded"):
            rows = slates.labels.numel() if name == "documents" else len(slates.labels)
            if len(vectors) != rows:
                raise ValueError(
                    f"Got {len(vectors)} rows of {name} for labels of the shape {tuple(slates.labels.shape)}, slates "
                    f"by documents; give {rows}, padding included."
                )
        with torch.autocast(embeddings["documents"].device.type, enabled=False):
            precise = {name: _precise(vectors) for name, vectors in embeddings.items()}
            return self._parts(precise, slates, reference or {})

    def _parts(
        self, embeddings: Mapping[str, Tensor], slates: SlateLabels, reference: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        parts, options = {}, self.options
        across = options.gather_across_devices
        documents = embeddings["documents"].unflatten(0, slates.labels.shape)  # (B, N, D)
        if options.contrastive_weight:
            pool = Pool.of(documents, slates)
            contrastive = info_nce(
                embeddings["query"], documents, slates, options.temperature, pool.gather() if across else pool
            )
            parts["contrastive"] = options.contrastive_weight * contrastive.mean(across)
        if options.trains_prompts:
            parts |= self._ranking_parts(embeddings, documents, slates)
        if options.guard_weight:
            name = self._guarded[1]
            present = slice(None) if options.freeze_documents else slates.candidates.flatten()
            queries = drift(embeddings["query"], reference["query"])
            texts = drift(embeddings[name][present], reference[name][present])
            parts["guard"] = options.guard_weight * (queries.mean(across) + texts.mean(across)) / 2
        return parts

    def _ranking_parts(
        self, embeddings: Mapping[str, Tensor], documents: Tensor, slates: SlateLabels
    ) -> dict[str, Tensor]:
        parts, options = {}, self.options
        across = options.gather_across_devices
        ranking = embeddings["listwise"]  # (B, D)
        if self.query_weight:
            ranking = interpolate(embeddings["query"], ranking, self.query_weight)
        scores = F.cosine_similarity(ranking[:, None], documents, dim=-1)  # (B, N)
        if options.listwise_weight:
            listwise = ranknet(scores, slates.labels, options.listwise_scale)
            parts["listwise"] = options.listwise_weight * listwise.mean(across)
        if options.localized_weight:
            contrast = localized(scores, slates, options.localized_scale)
            parts["localized"] = options.localized_weight * contrast.mean(across)
        return parts

    def _columns(self, sentence_features: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The columns by name."""
        given, needed = list(sentence_features), self.columns
        if len(given) != len(needed):
            raise ValueError(f"Got {len(given)} input columns; give {needed}, in this order.")
        return dict(zip(needed, given, strict=True))

    def _frozen_embeddings(self, columns: Mapping[str, dict[str, Any]]) -> dict[str, Tensor]:
        """The vectors of texts that are given as such: of documents, and with a prompt adapter of queries."""
        frozen = {name: part["sentence_embedding"] for name, part in columns.items() if "input_ids" not in part}
        if self.options.freeze_documents and "documents" not in frozen:
            raise ValueError("freeze_documents needs the documents' vectors, as 'sentence_embedding'; got their texts.")
        return frozen

    def _reference_embeddings(self, columns: Mapping[str, dict[str, Any]]) -> dict[str, Tensor]:
        """The embeddings that the guard compares with; none without a guard."""
        if self.reference is None or not self.options.guard_weight:
            return {}
        with torch.no_grad():
            return {name: self._embed_reference(self.reference, columns[name]) for name in self._guarded}

    def _embed_reference(self, reference: Callable[..., Mapping[str, Any]], features: dict[str, Any]) -> Tensor:
        return cast(Tensor, reference(dict(features))["sentence_embedding"])

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        options = {name: value for name, value in asdict(self.options).items() if value is not None}
        return {**options, "query_weight": self.query_weight}

    @property
    def citation(self) -> str:
        """BibTeX of the paper, for the model card."""
        return CITATION


class CachedE2RankLoss(CachedLossMixin, E2RankLoss):
    """:class:`E2RankLoss` by gradient caching (arXiv 2101.06983): the same gradients, memory for one mini-batch.

    Every text is embedded twice, first without gradients. Only the vectors of the whole batch are kept at once, so that
    the batch may grow until their scores, ``B · U`` numbers, fill the memory. The options name a ``mini_batch_size``.
    """

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> dict[str, Tensor]:
        """Embed the columns in mini-batches and compute the parts of the loss; as :meth:`E2RankLoss.forward`.

        The gradients of all parts hang on the first one, so only the sum of the parts has the right ones.
        """
        columns, slates = self._columns(sentence_features), SlateLabels.unpack(labels)
        frozen = self._frozen_embeddings(columns)
        trained = {name: features for name, features in columns.items() if name not in frozen}
        step = _Step(tuple(trained), slates, frozen, self._reference_embeddings(columns), {})
        total = self.forward_cached(list(trained.values()), step)  # type: ignore[arg-type]  # passed on as it is
        first = next(iter(step.parts))
        return {**step.parts, first: step.parts[first] + (total - total.detach())}

    def calculate_loss(  # type: ignore[override]  # the labels carry more than a tensor
        self, reps: list[list[Tensor]], labels: _Step, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss of the whole batch from its mini-batches' vectors; called by :meth:`forward`.

        Args:
            reps: The vectors of each mini-batch, for each column.
            labels: What :meth:`forward` hands over; the parts of the loss are left in it.
            with_backward: Whether to backpropagate at once, up to the vectors.

        Returns:
            The sum of the parts.
        """
        embeddings = {name: torch.cat(vectors) for name, vectors in zip(labels.columns, reps, strict=True)}
        embeddings |= labels.frozen
        parts = self.compute_loss_from_embeddings(embeddings, labels.slates, labels.reference)
        labels.parts.update({name: part.detach() for name, part in parts.items()})
        total = torch.stack(list(parts.values())).sum()
        if with_backward:
            total.backward()
            total = total.detach()
        return total

    def _embed_reference(self, reference: Callable[..., Mapping[str, Any]], features: dict[str, Any]) -> Tensor:
        chunks = CachedLossMixin()
        chunks.model, chunks.mini_batch_size = reference, self.mini_batch_size
        embedded = chunks.embed_minibatch_iter(features, with_grad=False, copy_random_state=False)
        return torch.cat([vectors for vectors, _ in embedded])


class _Step(NamedTuple):
    """The values that one call carries through ``forward_cached``, apart from those of any second call."""

    columns: tuple[str, ...]
    slates: SlateLabels
    frozen: dict[str, Tensor]
    reference: dict[str, Tensor]
    parts: dict[str, Tensor]


def _precise(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors


def _frozen(reference: nn.Module, model: nn.Module) -> nn.Module:
    trained = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) in trained for parameter in reference.parameters()):
        raise ValueError("The reference shares parameters with the model, so it would freeze it; give a copy.")
    return reference.eval().requires_grad_(False)
