"""Embeddings of queries, listwise prompts and documents → the losses that E2Rank is trained with.

``L = contrastive_weight · InfoNCE(e_q, e_d) + listwise_weight · RankNet(e_l, e_d)`` (E2Rank, arXiv 2510.22733), each
part also alone: the first one is stage I, both together are stage II. ``localized_weight · LCE(e_l, e_d)`` can be added
for slates that know the answer and no order. What is computed from vectors is in
:mod:`e2rank_st.training.objectives`; :class:`E2RankLoss` embeds and adds up, :class:`CachedE2RankLoss` does so in
memory for one mini-batch.

Axes: B queries, N documents of the longest slate, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn

from e2rank_st.modeling_e2rank import interpolate
from e2rank_st.training.labels import SlateLabels
from e2rank_st.training.objectives import LISTWISE, REDUCTIONS, Pool, drift, info_nce, localized, one_of

__all__ = ["COLUMNS", "CachedE2RankLoss", "E2RankLoss"]

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
CACHED_CITATION = """
@misc{gao2021scaling,
    title={Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup},
    author={Luyu Gao and Yunyi Zhang and Jiawei Han and Jamie Callan},
    year={2021},
    eprint={2101.06983},
    archivePrefix={arXiv},
    primaryClass={cs.LG},
}
"""


class E2RankLoss(nn.Module):
    """InfoNCE between queries and documents, plus a listwise loss between listwise prompts and their documents.

    Its inputs are columns, each as the model's ``preprocess`` gives it: B queries, B listwise prompts, the documents of
    all slates, B·N rows, and with frozen documents the G texts that are guarded. Which of them the weights call for,
    :attr:`columns` says. The labels come from :meth:`SlateLabels.pack`.

    Args:
        model: The model to train.
        temperature: Of InfoNCE.
        contrastive_weight: Factor of InfoNCE.
        listwise_weight: Factor of the listwise loss, λ.
        listwise: ``"ranknet"``, ``"lambda"`` or ``"listnet"``: :func:`ranknet`, :func:`lambda_loss`, :func:`list_net`.
        listwise_scale: Factor on the cosines in the listwise loss.
        localized_weight: Factor of :func:`localized`, which contrasts the gold documents of a slate with its others
            under the vector that ranks.
        localized_scale: Factor on the cosines in it.
        reduction: Of the pairs, ``"mean"`` or ``"sum"``: see :func:`ranknet`.
        query_weight: Share of the query in the vector that ranks: the listwise loss then trains the vector that
            reranking uses, see :class:`~e2rank_st.modeling_e2rank.ListwiseRerank`.
        freeze_documents: The column of documents holds their vectors, ``(B·N, D)`` as ``sentence_embedding``, and no
            texts: those of the model before training. A step then costs a prompt a slate, instead of a prompt and all
            documents. The guard watches the column ``guarded`` in their place.
        gather_across_devices: Whether the documents of the other processes are negatives, too, and means are taken
            over what all processes hold: then they train as one process with the whole batch would. Without it, each
            takes the means of its own share.
        guard_weight: Factor of the guard, the mean :func:`drift` of queries and of documents from ``reference``, which
            keeps the plain embedding what it was.
        reference: Where the guard looks: a frozen model, or a function from a column to a dict with
            ``"sentence_embedding"``, such as the model with its adapter switched off. A model is set to evaluation and
            loses its gradients.

    Raises:
        ValueError: An option is not allowed, or nothing would be trained.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        temperature: float = 0.03,
        contrastive_weight: float = 1.0,
        listwise_weight: float = 2.0,
        listwise: str = "ranknet",
        listwise_scale: float = 10.0,
        localized_weight: float = 0.0,
        localized_scale: float = 20.0,
        reduction: str = "mean",
        query_weight: float = 0.0,
        freeze_documents: bool = False,
        gather_across_devices: bool = False,
        guard_weight: float = 0.0,
        reference: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = _number("temperature", temperature, positive=True)
        self.contrastive_weight = _number("contrastive_weight", contrastive_weight)
        self.listwise_weight = _number("listwise_weight", listwise_weight)
        self.listwise = one_of("listwise", listwise, tuple(LISTWISE))
        self.listwise_scale = _number("listwise_scale", listwise_scale, positive=True)
        self.localized_weight = _number("localized_weight", localized_weight)
        self.localized_scale = _number("localized_scale", localized_scale, positive=True)
        self.reduction = one_of("reduction", reduction, ("mean",) if listwise == "listnet" else REDUCTIONS)
        self.query_weight = _number("query_weight", query_weight)
        if query_weight > 1:
            raise ValueError(f"query_weight is a share and must be at most 1, got {query_weight!r}.")
        self.freeze_documents = freeze_documents
        self.gather_across_devices = gather_across_devices
        self.guard_weight = _number("guard_weight", guard_weight)
        if not contrastive_weight and not self._ranks:
            raise ValueError(
                "contrastive_weight, listwise_weight and localized_weight are all 0: nothing would be trained. Raise "
                "one."
            )
        if bool(guard_weight) != (reference is not None):
            got = "no" if reference is None else "a"
            raise ValueError(f"Got guard_weight={guard_weight} and {got} reference; give both, or neither.")
        self.reference = _frozen(reference, model) if isinstance(reference, nn.Module) else reference

    @property
    def _ranks(self) -> bool:
        """Whether listwise prompts are trained."""
        return bool(self.listwise_weight or self.localized_weight)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the input columns that the weights call for, in their order."""
        needed = {
            "query": self.contrastive_weight or self.guard_weight or (self._ranks and self.query_weight),
            "listwise": self._ranks,
            "documents": True,
            "guarded": self.guard_weight and self.freeze_documents,
        }
        return tuple(name for name in COLUMNS if needed[name])

    @property
    def _guarded(self) -> tuple[str, str]:
        return ("query", "guarded" if self.freeze_documents else "documents")

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> dict[str, Tensor]:
        """Embed the columns and compute the parts of the loss.

        Args:
            sentence_features: Those of :attr:`columns`, in their order; ``(query, listwise, documents)`` will also do.
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
            slates: What is known of the documents.
            reference: For the guard, the reference's embeddings of ``query`` and ``documents``, or ``guarded``.

        Returns:
            Scalars, already weighted: ``contrastive``, ``listwise``, ``localized`` and ``guard``, as far as their
            weight is not 0.

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
        if self.guard_weight and not reference:
            raise ValueError(f"Got guard_weight={self.guard_weight} and no embeddings of the reference; give them.")
        with torch.autocast(embeddings["documents"].device.type, enabled=False):
            precise = {name: _precise(vectors) for name, vectors in embeddings.items()}
            return self._parts(precise, slates, reference or {})

    def _parts(
        self, embeddings: Mapping[str, Tensor], slates: SlateLabels, reference: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        parts, across = {}, self.gather_across_devices
        documents = embeddings["documents"].unflatten(0, slates.labels.shape)  # (B, N, D)
        if self.contrastive_weight:
            pool = Pool.of(documents, slates)
            contrastive = info_nce(
                embeddings["query"], documents, slates, self.temperature, pool.gather() if across else pool
            )
            parts["contrastive"] = self.contrastive_weight * contrastive.mean(across)
        if self._ranks:
            parts |= self._ranking_parts(embeddings, documents, slates)
        if self.guard_weight:
            name = self._guarded[1]
            present = slice(None) if self.freeze_documents else slates.candidates.flatten()
            queries = drift(embeddings["query"], reference["query"])
            texts = drift(embeddings[name][present], reference[name][present])
            parts["guard"] = self.guard_weight * (queries.mean(across) + texts.mean(across)) / 2
        return parts

    def _ranking_parts(
        self, embeddings: Mapping[str, Tensor], documents: Tensor, slates: SlateLabels
    ) -> dict[str, Tensor]:
        parts, across = {}, self.gather_across_devices
        ranking = embeddings["listwise"]  # (B, D)
        if self.query_weight:
            ranking = interpolate(embeddings["query"], ranking, self.query_weight)
        scores = F.cosine_similarity(ranking[:, None], documents, dim=-1)  # (B, N)
        if self.listwise_weight:
            listwise = LISTWISE[self.listwise](scores, slates.labels, self.listwise_scale, self.reduction)
            parts["listwise"] = self.listwise_weight * listwise.mean(across)
        if self.localized_weight:
            parts["localized"] = self.localized_weight * localized(scores, slates, self.localized_scale).mean(across)
        return parts

    def _columns(self, sentence_features: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The columns that are needed, by name."""
        given, needed = list(sentence_features), self.columns
        names = needed if len(given) == len(needed) else COLUMNS[: len(given)]
        if len(given) != len(names) or not set(needed) <= set(names):
            raise ValueError(f"Got {len(given)} input columns; give {needed}, in this order, or all of {COLUMNS}.")
        return {name: features for name, features in zip(names, given, strict=True) if name in needed}

    def _frozen_embeddings(self, columns: Mapping[str, dict[str, Any]]) -> dict[str, Tensor]:
        """The vectors of documents that are given as such."""
        if not self.freeze_documents:
            return {}
        if "sentence_embedding" not in columns["documents"]:
            raise ValueError("freeze_documents needs the documents' vectors, as 'sentence_embedding'; got their texts.")
        return {"documents": columns["documents"]["sentence_embedding"]}

    def _reference_embeddings(self, columns: Mapping[str, dict[str, Any]]) -> dict[str, Tensor]:
        """What the guard compares with; nothing without a guard."""
        if self.reference is None or not self.guard_weight:
            return {}
        with torch.no_grad():
            return {name: self._embed_reference(self.reference, columns[name]) for name in self._guarded}

    def _embed_reference(self, reference: Callable[..., Mapping[str, Any]], features: dict[str, Any]) -> Tensor:
        return cast(Tensor, reference(dict(features))["sentence_embedding"])

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        names = (
            "temperature", "contrastive_weight", "listwise_weight", "listwise", "listwise_scale", "localized_weight",
            "localized_scale", "reduction", "query_weight", "freeze_documents", "gather_across_devices", "guard_weight",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def citation(self) -> str:
        """BibTeX of the paper, for the model card."""
        return CITATION


class CachedE2RankLoss(CachedLossMixin, E2RankLoss):
    """:class:`E2RankLoss` by gradient caching (Gao et al. 2021): the same gradients, memory for one mini-batch.

    Every text is embedded twice, first without gradients. Only the vectors of the whole batch are kept at once, so that
    the batch may grow until their scores, ``B · U`` numbers, fill the memory.

    Args:
        model: The model to train.
        mini_batch_size: Most texts in a forward pass.
        mini_batch_num_tokens: Most tokens in a forward pass, instead of the number of texts.
        show_progress_bar: Whether to show a progress bar for each embedding step.
        **options: As for :class:`E2RankLoss`.

    Raises:
        ValueError: An option is not allowed, or nothing would be trained.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.mini_batch_size = _whole("mini_batch_size", mini_batch_size)
        tokens = mini_batch_num_tokens
        self.mini_batch_num_tokens = None if tokens is None else _whole("mini_batch_num_tokens", tokens)
        self.show_progress_bar = show_progress_bar

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
        chunks.mini_batch_num_tokens = self.mini_batch_num_tokens
        embedded = chunks.embed_minibatch_iter(features, with_grad=False, copy_random_state=False)
        return torch.cat([vectors for vectors, _ in embedded])

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        names = ("mini_batch_size", "mini_batch_num_tokens")
        return {**super().get_config_dict(), **{name: getattr(self, name) for name in names}}

    @property
    def citation(self) -> str:
        """BibTeX of the paper and of gradient caching, for the model card."""
        return CITATION + CACHED_CITATION


class _Step(NamedTuple):
    """What one call carries through ``forward_cached``, so that a second call cannot mix it up."""

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


def _number(name: str, value: Any, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")
    if positive and not value:
        raise ValueError(f"{name} must be above 0, got {value!r}.")
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return value
