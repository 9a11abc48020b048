"""Slates of labels, and vectors for them, to compute losses from."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from e2rank_st.training.labels import SlateLabels
from e2rank_st.training.losses import CachedE2RankLoss, E2RankLoss, LossOptions

NAN, INF = math.nan, math.inf
DIMENSION = 4


def slates(labels: list[list], gold: list[list] | None = None, texts: list[list] | None = None) -> SlateLabels:
    """Slates without golds and of texts that are all different, but for what is given."""
    gold = gold or [[False] * len(row) for row in labels]
    texts = texts or [[f"{index}-{place}" for place in range(len(row))] for index, row in enumerate(labels)]
    return SlateLabels.from_rows(labels, gold, texts)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def text_vectors(known: SlateLabels) -> Tensor:
    """A vector for each document, equal for equal texts, of shape (B, N, D)."""
    ids = known.text_ids.flatten().tolist()
    return torch.stack([random(DIMENSION, seed=i % 2**31) for i in ids]).unflatten(0, known.labels.shape)


def fill_up(known: SlateLabels, extra: int) -> SlateLabels:
    """The same slates with more padding, whose ids are those of documents."""
    size = (len(known.labels), extra)
    padding = (torch.full(size, -INF), torch.zeros(size).bool(), known.text_ids[:, :1].expand(size))
    return SlateLabels(*(torch.cat(parts, dim=1) for parts in zip(known, padding, strict=True)))


RAGGED = slates([[3, 1, 1, None, 0], [0, 2], [5, 5, 5], [None, 1]])
MIXED = slates(
    [[3, None, 0], [1, 2, 4, 1], [None, None, None], [0, 2]],
    gold=[[0, 1, 0], [0, 0, 0, 0], [0, 0, 0], [0, 0]],
    texts=[["a", "b", "c"], ["b", "e", "h", "i"], ["f", "g", "a"], ["d", "e"]],
)


def mixed_embeddings() -> dict[str, Tensor]:
    """Embeddings of the columns for :data:`MIXED`."""
    documents = random(16, DIMENSION, seed=3)
    return {"query": random(4, DIMENSION, seed=1), "listwise": random(4, DIMENSION, seed=2), "documents": documents}


def total(parts: dict[str, Tensor]) -> Tensor:
    """What the trainer makes of a loss's parts."""
    return torch.stack(list(parts.values())).sum()


class Uncalled(nn.Module):
    """A model that a loss asks for its query weight, and for nothing else."""

    def __init__(self, query_weight: float = 0.0) -> None:
        super().__init__()
        self.listwise = SimpleNamespace(query_weight=query_weight)


def make_loss(model: nn.Module, reference=None, **options) -> E2RankLoss:
    """The loss with these options, cached if they name a size of mini-batches."""
    kind = CachedE2RankLoss if "mini_batch_size" in options else E2RankLoss
    return kind(model, LossOptions(**options), reference)
