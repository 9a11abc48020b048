"""Embeddings of queries, listwise prompts and documents → the losses that E2Rank is trained with.

``L = contrastive_weight · InfoNCE(e_q, e_d) + listwise_weight · RankNet(e_l, e_d)`` (E2Rank, arXiv 2510.22733), each
part also alone: the first one is stage I, both together are stage II. What is computed from vectors are functions
without state; :class:`E2RankLoss` embeds and adds up, :class:`CachedE2RankLoss` does so in memory for one mini-batch.

Every part is a sum and a number of terms, and only their quotient a mean: with several processes the numbers are added
up first, so that the loss is that of one process with the whole batch, however its slates and pairs are spread.

Axes: B queries, N documents of the longest slate, D dimensions; P positives, M documents, U distinct texts of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.util import all_gather, all_gather_with_grad
from torch import Tensor, nn

from e2rank_st.modeling_e2rank import interpolate

__all__ = [
    "COLUMNS",
    "LISTWISE",
    "PADDING",
    "REDUCTIONS",
    "UNJUDGED",
    "Average",
    "CachedE2RankLoss",
    "E2RankLoss",
    "Pool",
    "SlateLabels",
    "drift",
    "info_nce",
    "lambda_loss",
    "lambda_weights",
    "list_net",
    "positives",
    "preferences",
    "ranknet",
    "text_id",
]

COLUMNS = ("query", "listwise", "documents", "guarded")
REDUCTIONS = ("mean", "sum")
PADDING, UNJUDGED = -math.inf, math.nan  # as labels
MAX_GRADE = 4.0  # the gain 2**grade - 1 of a permutation of a hundred would drown all but the first document
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


def text_id(text: str) -> int:
    """Return a 63-bit id of a text: the same in every process and every run, as Python's own hash is not."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


class SlateLabels(NamedTuple):
    """What is known of the documents of B slates, short ones filled up with padding.

    A trainer passes a loss one tensor of labels. :meth:`pack` makes it an integer one, because DeepSpeed casts those of
    floating point to half precision, which no id and not every label survives.

    Attributes:
        labels: ``(B, N)`` float32, higher is better, equal is no preference. NaN: unjudged, a candidate but in no pair.
            ``-inf``: padding, no candidate at all (its row of documents still has to hold some text).
        gold: ``(B, N)`` bool, whether the document is a known positive of the query.
        text_ids: ``(B, N)`` int64, equal where the texts are equal, wherever they stand, and in other processes too if
            negatives are gathered from them: see :func:`text_id`.
    """

    labels: Tensor
    gold: Tensor
    text_ids: Tensor

    @classmethod
    def from_rows(
        cls,
        labels: Sequence[Sequence[float | None]],
        gold: Sequence[Sequence[bool]],
        texts: Sequence[Sequence[str]],
    ) -> SlateLabels:
        """Fill slates up to the longest one.

        Args:
            labels: The labels of each slate, ``None`` for unjudged.
            gold: Which of its documents are known positives.
            texts: Its documents.

        Raises:
            ValueError: The three differ in length somewhere, or there is no slate.
        """
        sizes = [[len(row) for row in rows] for rows in (labels, gold, texts)]
        if not sizes[0] or sizes.count(sizes[0]) != 3:
            raise ValueError(f"Got slates of {sizes} labels, golds and texts; give one of each for every document.")
        shape = (len(labels), max(sizes[0]))
        slates = cls(torch.full(shape, PADDING), torch.zeros(shape, dtype=torch.bool), torch.zeros(shape).long())
        for index, size in enumerate(sizes[0]):
            slates.labels[index, :size] = torch.tensor([UNJUDGED if x is None else float(x) for x in labels[index]])
            slates.gold[index, :size] = torch.tensor(gold[index], dtype=torch.bool)
            slates.text_ids[index, :size] = torch.tensor([text_id(text) for text in texts[index]])
        return slates

    @property
    def candidates(self) -> Tensor:
        """``(B, N)`` bool: all but the padding."""
        return self.labels != PADDING

    def pack(self) -> Tensor:
        """Make one ``(B, N, 3)`` int64 tensor of the three, the labels as the bits of their float32.

        Raises:
            ValueError: The shapes differ or are not (B, N), a label is ``+inf``, padding is gold, or a slate is empty.
        """
        shapes = [tuple(part.shape) for part in self]
        if shapes.count(shapes[0]) != 3 or len(shapes[0]) != 2:
            raise ValueError(f"labels, gold and text_ids must all have one shape (B, N), got {shapes}.")
        rules = (
            (self.labels == math.inf, "a label of +inf; give a finite one, NaN for unjudged or -inf for padding"),
            (self.gold.bool() & ~self.candidates, "a padding row marked as gold; only a document can be gold"),
            (~self.candidates.any(1, keepdim=True), "no document; leave empty slates out of the batch"),
        )
        for wrong, problem in rules:
            if wrong.any():
                raise ValueError(f"Slate {int(wrong.any(1).nonzero()[0])} has {problem}.")
        bits = self.labels.to(torch.float32).view(torch.int32)
        return torch.stack([bits.long(), self.gold.long(), self.text_ids.long()], dim=-1)

    @classmethod
    def unpack(cls, packed: Any) -> SlateLabels:
        """Read what :meth:`pack` wrote.

        Raises:
            ValueError: It is no ``(B, N, 3)`` int64 tensor.
        """
        if not isinstance(packed, Tensor) or packed.ndim != 3 or packed.shape[2] != 3 or packed.dtype != torch.int64:
            got = f"{packed.dtype} of {tuple(packed.shape)}" if isinstance(packed, Tensor) else type(packed).__name__
            raise ValueError(f"labels must be an int64 tensor (B, N, 3), got {got}; make it with SlateLabels.pack().")
        bits, gold, text_ids = packed.unbind(-1)
        return cls(bits.to(torch.int32).view(torch.float32), gold.bool(), text_ids)


class Average(NamedTuple):
    """A sum of losses, and of how many: a mean that can still be taken over several processes.

    Attributes:
        total: Scalar, the sum.
        number: Scalar, an integer; zero where nothing was there to learn from.
    """

    total: Tensor
    number: Tensor

    def mean(self, across_processes: bool = False) -> Tensor:
        """Divide; without anything to divide by the result is 0, with a gradient of 0.

        Args:
            across_processes: Divide by the number of an average process instead. Processes that average their
                gradients, as DDP's do, then follow the mean over all that they hold together.
        """
        number, processes = self.number.to(self.total.dtype), 1  # a copy: the original is an integer
        if across_processes and _is_distributed():
            processes = torch.distributed.get_world_size()
            torch.distributed.all_reduce(number)
        return self.total * processes / number.clamp(min=1)


class Pool(NamedTuple):
    """Documents that serve as candidates of every query.

    Attributes:
        text_ids: ``(M,)`` int64, equal for equal texts.
        vectors: ``(M, D)``.
    """

    text_ids: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, documents: Tensor, slates: SlateLabels) -> Pool:
        """Take all documents of a batch, ``(B, N, D)``, but the padding."""
        return cls(slates.text_ids[slates.candidates], documents[slates.candidates])

    def distinct(self) -> Pool:
        """Keep the first document of each text, U of them, in ascending order of their ids."""
        text_ids, place = self.text_ids.unique(return_inverse=True)
        rows = torch.arange(len(place), device=place.device)
        first = torch.full_like(text_ids, len(place)).scatter_reduce(0, place, rows, "amin")
        return Pool(text_ids, self.vectors[first])

    def gather(self) -> Pool:
        """Join the pools of all processes, of whatever sizes; gradients flow back to where a vector came from."""
        if not _is_distributed():
            return self
        sizes = all_gather(torch.tensor([len(self.text_ids)], device=self.text_ids.device))
        largest = int(sizes.max())
        missing = largest - len(self.text_ids)  # a collective wants equal shapes
        text_ids = all_gather(F.pad(self.text_ids, (0, missing)))
        vectors = all_gather_with_grad(F.pad(self.vectors, (0, 0, 0, missing)))
        present = (torch.arange(largest, device=sizes.device) < sizes[:, None]).flatten()
        return Pool(text_ids[present], vectors[present])


def preferences(labels: Tensor) -> Tensor:
    """Find the pairs with ``label_i > label_j``.

    Args:
        labels: ``(B, N)``, as in :class:`SlateLabels`.

    Returns:
        ``(B, N, N)`` bool, better document first. What is unjudged or padding is in no pair, and neither are ties.
    """
    judged = labels.isfinite()
    return (labels[:, :, None] > labels[:, None, :]) & judged[:, :, None] & judged[:, None, :]


def positives(slates: SlateLabels) -> Tensor:
    """Find what a query should retrieve: the gold documents, or else the best labelled one, the first of several.

    A slate has no positive if it has neither, or if all its two or more labels are equal: that is no preference.

    Returns:
        ``(B, N)`` bool.
    """
    judged = slates.labels.isfinite()
    best = slates.labels.masked_fill(~judged, -math.inf).argmax(1, keepdim=True)  # the first of equals
    has_best = preferences(slates.labels).any((1, 2)) | (judged.sum(1) == 1)
    labelled = torch.zeros_like(slates.gold).scatter(1, best, has_best[:, None])
    return torch.where(slates.gold.any(1, keepdim=True), slates.gold, labelled)


def info_nce(
    queries: Tensor, documents: Tensor, slates: SlateLabels, temperature: float = 0.03, pool: Pool | None = None
) -> Average:
    """Contrast the positives of each query with all other texts of the batch (InfoNCE, arXiv 1807.03748).

    ``-log(exp(s⁺/τ) / Σ exp(s/τ))`` over the positive and every distinct text of the pool, ``s`` the cosine. Left out
    of the sum is what the query's own slate holds to be no worse than the positive (other golds, equal or higher
    labels), also where another slate has the same text. What is unjudged counts as a negative. Several golds are
    positives in turn, and every slate has the same weight.

    Args:
        queries: ``(B, D)``.
        documents: ``(B, N, D)``.
        slates: What is known of the documents.
        temperature: τ.
        pool: The candidates; by default the documents of all slates. It has to hold those of ``slates``.

    Returns:
        The sum over slates, and the number of those that have a positive.
    """
    text_ids, vectors = (Pool.of(documents, slates) if pool is None else pool).distinct()
    positive = positives(slates)
    slate, row = positive.nonzero(as_tuple=True)  # (P,), (P,)
    queries, documents = F.normalize(queries, dim=-1), F.normalize(documents, dim=-1)
    scores = queries @ F.normalize(vectors, dim=-1).T / temperature  # (B, U)
    negatives = scores[slate].masked_fill(_no_negatives(slates, slate, row, text_ids), -math.inf)  # (P, U)
    scores = (queries[slate] * documents[slate, row]).sum(-1) / temperature  # (P,)
    losses = torch.cat([scores[:, None], negatives], dim=1).logsumexp(1) - scores
    return Average((losses / positive.sum(1)[slate]).sum(), positive.any(1).sum())


def _no_negatives(slates: SlateLabels, slate: Tensor, row: Tensor, text_ids: Tensor) -> Tensor:
    """``(P, U)`` bool: which texts are the positive at ``(slate, row)`` itself, or no worse than it."""
    labels = slates.labels[slate]  # (P, N)
    no_worse = slates.gold[slate] | (labels >= labels.gather(1, row[:, None]))
    item, place = no_worse.nonzero(as_tuple=True)
    blocked = torch.zeros(len(slate), len(text_ids), dtype=torch.bool, device=labels.device)
    blocked[item, torch.searchsorted(text_ids, slates.text_ids[slate[item], place])] = True
    return blocked


def ranknet(scores: Tensor, labels: Tensor, scale: float = 10.0, reduction: str = "mean") -> Average:
    """Learn every preference between two documents of a slate (RankNet, Burges et al. 2005).

    ``log(1 + exp(-scale · (s_i - s_j)))`` for each pair with ``label_i > label_j``.

    Args:
        scores: ``(B, N)`` cosines to the listwise query.
        labels: ``(B, N)``, as in :class:`SlateLabels`.
        scale: ``1/τ_r``.
        reduction: ``"mean"`` over all pairs of the batch, as E2Rank's reference code; or the ``"sum"`` over the pairs
            of a slate divided by the number of its judged documents, as the paper, averaged over the slates with pairs.

    Raises:
        ValueError: ``reduction`` is another one.
    """
    return _over_pairs(scores, labels, torch.ones_like(scores)[:, :, None], scale, reduction)


def lambda_loss(scores: Tensor, labels: Tensor, scale: float = 10.0, reduction: str = "mean") -> Average:
    """Weigh RankNet's pairs by what they matter for nDCG, with :func:`lambda_weights`; arguments as :func:`ranknet`.

    For 16 documents in random order the weights average 0.13 (labels a permutation) or 0.17 (grades 0 to 3). The loss
    is that much smaller than RankNet's, and wants a larger ``listwise_weight``.

    Raises:
        ValueError: ``reduction`` is another one.
    """
    return _over_pairs(scores, labels, lambda_weights(scores, labels), scale, reduction)


def lambda_weights(scores: Tensor, labels: Tensor, mu: float = 10.0) -> Tensor:
    """Weigh pairs as NDCG-Loss2++ (Wang et al. 2018, The LambdaLoss Framework, CIKM, section 6).

    ``(|1/D_i - 1/D_j| + μ |1/D_{|i-j|} - 1/D_{|i-j|+1}|) · |G_i - G_j|`` with the discount ``D_i = log2(1 + i)`` of the
    current position ``i`` among the judged documents and the gain ``G = (2^grade - 1) / maxDCG``. A grade is the label;
    labels of a slate that has negative ones are shifted to start at 0, and those above 4 scaled down to end there.

    Args:
        scores: ``(B, N)``.
        labels: ``(B, N)``, as in :class:`SlateLabels`.
        mu: Weight of the second term.

    Returns:
        ``(B, N, N)`` constants without gradient; of meaning for judged documents only.
    """
    gains = _gains(labels)  # (B, N)
    order = scores.detach().masked_fill(~labels.isfinite(), -math.inf).argsort(dim=1, descending=True, stable=True)
    position = order.argsort(dim=1)  # (B, N), from 0
    inverse = 1 / torch.log2(torch.arange(2, gains.shape[1] + 3, device=gains.device, dtype=gains.dtype))  # 1/D_1 ...
    distance = (position[:, :, None] - position[:, None, :]).abs().clamp(min=1)  # (B, N, N)
    rough = (inverse[position][:, :, None] - inverse[position][:, None, :]).abs()
    fine = inverse[distance - 1] - inverse[distance]
    return (rough + mu * fine) * (gains[:, :, None] - gains[:, None, :]).abs()


def _gains(labels: Tensor) -> Tensor:
    """Labels ``(B, N)`` → gains over the slate's best possible DCG; 0 where not judged."""
    judged = labels.isfinite()
    lowest = labels.masked_fill(~judged, 0).amin(1, keepdim=True).clamp(max=0)
    grades = (labels - lowest).masked_fill(~judged, 0)
    grades = grades * (MAX_GRADE / grades.amax(1, keepdim=True).clamp(min=MAX_GRADE))
    gains = 2**grades - 1
    discounts = torch.log2(torch.arange(2, labels.shape[1] + 2, device=labels.device, dtype=labels.dtype))
    best = (gains.sort(dim=1, descending=True).values / discounts).sum(1, keepdim=True)
    return gains / best.clamp(min=1e-10)


def list_net(scores: Tensor, labels: Tensor, scale: float = 10.0, reduction: str = "mean") -> Average:
    """Match the distributions over the judged documents of a slate (ListNet's top one, Cao et al. 2007).

    Cross-entropy of ``softmax(scale · s)`` to ``softmax(labels)``. Slates without a preference are skipped.

    Args:
        scores: ``(B, N)`` cosines to the listwise query.
        labels: ``(B, N)``, as in :class:`SlateLabels`; their scale says how sharp the distribution is.
        scale: Factor on the cosines.
        reduction: ``"mean"`` over slates; there are no pairs to sum.

    Raises:
        ValueError: ``reduction`` is another one.
    """
    _one_of("reduction of listnet", reduction, ("mean",))
    useful = preferences(labels).any((1, 2))
    scores, labels = scores[useful], labels[useful]
    judged = labels.isfinite()
    targets = labels.masked_fill(~judged, -math.inf).softmax(1).to(scores.dtype)
    logs = (scale * scores).masked_fill(~judged, -math.inf).log_softmax(1)
    # Not a product alone: 0 times the -inf of what is not judged would be NaN.
    return Average(-torch.where(judged, targets * logs, 0).sum(), useful.sum())


def _over_pairs(scores: Tensor, labels: Tensor, weights: Tensor, scale: float, reduction: str) -> Average:
    _one_of("reduction", reduction, REDUCTIONS)
    pairs = preferences(labels)  # (B, N, N)
    losses = weights * F.softplus(-scale * (scores[:, :, None] - scores[:, None, :]))
    losses = losses.masked_fill(~pairs, 0)
    if reduction == "mean":
        return Average(losses.sum(), pairs.sum())
    judged = labels.isfinite().sum(1).clamp(min=1)
    return Average((losses.sum((1, 2)) / judged).sum(), pairs.any(2).any(1).sum())


def drift(vectors: Tensor, reference: Tensor) -> Average:
    """Measure how far vectors have turned away from a reference: ``1 - cosine``, for two ``(texts, D)`` matrices."""
    losses = 1 - F.cosine_similarity(vectors, reference, dim=-1)
    return Average(losses.sum(), torch.tensor(len(losses), device=losses.device))


LISTWISE: Mapping[str, Callable[[Tensor, Tensor, float, str], Average]] = {
    "ranknet": ranknet,
    "lambda": lambda_loss,
    "listnet": list_net,
}


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
        self.listwise = _one_of("listwise", listwise, tuple(LISTWISE))
        self.listwise_scale = _number("listwise_scale", listwise_scale, positive=True)
        self.reduction = _one_of("reduction", reduction, ("mean",) if listwise == "listnet" else REDUCTIONS)
        self.query_weight = _number("query_weight", query_weight)
        if query_weight > 1:
            raise ValueError(f"query_weight is a share and must be at most 1, got {query_weight!r}.")
        self.freeze_documents = freeze_documents
        self.gather_across_devices = gather_across_devices
        self.guard_weight = _number("guard_weight", guard_weight)
        if not contrastive_weight and not listwise_weight:
            raise ValueError("contrastive_weight and listwise_weight are both 0: nothing would be trained. Raise one.")
        if bool(guard_weight) != (reference is not None):
            got = "no" if reference is None else "a"
            raise ValueError(f"Got guard_weight={guard_weight} and {got} reference; give both, or neither.")
        self.reference = _frozen(reference, model) if isinstance(reference, nn.Module) else reference

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the input columns that the weights call for, in their order."""
        needed = {
            "query": self.contrastive_weight or self.guard_weight or (self.listwise_weight and self.query_weight),
            "listwise": self.listwise_weight,
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
            Scalars, already weighted: ``contrastive``, ``listwise`` and ``guard``, as far as their weight is not 0.

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
        if self.listwise_weight:
            ranking = embeddings["listwise"]  # (B, D)
            if self.query_weight:
                ranking = interpolate(embeddings["query"], ranking, self.query_weight)
            scores = F.cosine_similarity(ranking[:, None], documents, dim=-1)  # (B, N)
            listwise = LISTWISE[self.listwise](scores, slates.labels, self.listwise_scale, self.reduction)
            parts["listwise"] = self.listwise_weight * listwise.mean(across)
        if self.guard_weight:
            name = self._guarded[1]
            present = slice(None) if self.freeze_documents else slates.candidates.flatten()
            queries = drift(embeddings["query"], reference["query"])
            texts = drift(embeddings[name][present], reference[name][present])
            parts["guard"] = self.guard_weight * (queries.mean(across) + texts.mean(across)) / 2
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
            "temperature", "contrastive_weight", "listwise_weight", "listwise", "listwise_scale", "reduction",
            "query_weight", "freeze_documents", "gather_across_devices", "guard_weight",
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


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
    return value
