"""The joint loss: its parts, what must not change them, and the same gradients by another route."""

import copy
from pathlib import Path

import pytest
import torch
from sentence_transformers import util
from torch import Tensor, nn

from e2rank_st import E2Rank
from e2rank_st.embedding_e2rank import interpolate
from e2rank_st.training.labels import SlateLabels
from e2rank_st.training.losses import COLUMNS, CachedE2RankLoss, E2RankLoss, LossOptions
from e2rank_st.training.objectives import drift, info_nce, localized, ranknet
from tests.training.labelled import (
    DIMENSION,
    MIXED,
    NAN,
    Uncalled,
    fill_up,
    make_loss,
    mixed_embeddings,
    random,
    slates,
    text_vectors,
    total,
)

# --- all together -----------------------------------------------------------------------------------------------------


def test_gradients_against_finite_differences():
    """Guards against a part of the loss that is cut off from the gradient, or a mask that leaks into it."""
    loss = make_loss(Uncalled(), nn.Identity(), temperature=0.5, localized_weight=1, guard_weight=1)
    embeddings = {name: vectors.requires_grad_() for name, vectors in mixed_embeddings().items()}
    reference = {name: random(*vectors.shape, seed=7) for name, vectors in embeddings.items()}

    def parts(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(embeddings, tensors, strict=True))
        return tuple(loss.compute_loss_from_embeddings(named, MIXED, reference).values())

    assert len(parts(*embeddings.values())) == 4
    assert torch.autograd.gradcheck(parts, tuple(embeddings.values()), eps=1e-6, atol=1e-5)


def test_ragged_equals_padded():
    """Guards against padding that counts: more of it, holding whatever, changes neither loss nor gradient."""
    loss = make_loss(Uncalled(), temperature=2, localized_weight=1)
    results = []
    for extra in (0, 3):
        embeddings = {name: vectors.requires_grad_() for name, vectors in mixed_embeddings().items()}
        documents = embeddings["documents"].unflatten(0, (4, 4))
        rows = torch.cat([documents, 100 * random(4, extra, DIMENSION, seed=5)], dim=1).flatten(0, 1)
        parts = loss.compute_loss_from_embeddings({**embeddings, "documents": rows}, fill_up(MIXED, extra))
        total(parts).backward()
        results.append([*parts.values(), *(vectors.grad for vectors in embeddings.values())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_parts_are_weighted_and_can_be_left_out():
    """Guards against a weight applied twice or not at all, a part nobody asked for, and another vector than ranks."""
    embeddings = mixed_embeddings()
    documents = embeddings["documents"].unflatten(0, (4, 4))
    ranking = interpolate(embeddings["query"], embeddings["listwise"], 0.25)
    scores = torch.cosine_similarity(ranking[:, None], documents, dim=-1)
    parts = {
        "contrastive": info_nce(embeddings["query"], documents, MIXED, 0.1).mean(),
        "listwise": ranknet(scores, MIXED.labels, 7.0).mean(),
        "localized": localized(scores, MIXED, 5.0).mean(),
    }
    options = {"temperature": 0.1, "listwise_scale": 7.0, "localized_scale": 5.0}
    for weights in ((1.0, 2.0, 0), (0.5, 0, 0), (0, 3.0, 0), (0, 0, 0.5)):
        named = dict(zip(parts, weights, strict=True))
        loss = make_loss(Uncalled(0.25), **options, **{f"{name}_weight": value for name, value in named.items()})
        found = loss.compute_loss_from_embeddings({name: embeddings[name] for name in loss.columns}, MIXED)
        torch.testing.assert_close(found, {name: value * parts[name] for name, value in named.items() if value})


def test_autocast_does_not_reach_the_loss():
    """Guards against bfloat16 cosines, whose error of 0.004 a temperature of 0.03 would multiply."""
    embeddings = {name: vectors.float() for name, vectors in mixed_embeddings().items()}
    loss = E2RankLoss(Uncalled())
    expected = loss.compute_loss_from_embeddings(embeddings, MIXED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        parts = loss.compute_loss_from_embeddings(embeddings, MIXED)
    assert parts == expected
    half = {name: vectors.bfloat16() for name, vectors in embeddings.items()}
    assert {part.dtype for part in loss.compute_loss_from_embeddings(half, MIXED).values()} == {torch.float32}


# --- with a model -----------------------------------------------------------------------------------------------------

QUERIES = ["how long do fleas live", "capital of China", "height of Everest"]
LABELS = slates([[3, 1, None, 0], [0, 2, 1], [1, 0]], gold=[[0, 1, 0, 0], [0, 0, 0], [1, 0]])


@pytest.fixture
def model(tiny: E2Rank) -> E2Rank:
    """The tiny model, whose gradients belong to the test."""
    return copy.deepcopy(tiny).train()


@pytest.fixture
def bent(tiny: E2Rank) -> E2Rank:
    """A model that embeds otherwise than the tiny one."""
    other = copy.deepcopy(tiny)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.fixture
def features(tiny: E2Rank, facts: list[str]) -> list[dict]:
    """A batch of three slates, the documents filled up to four each."""
    documents = [*facts[:4], *facts[4:7], "-", *facts[7:9], "-", "-"]
    prompts = [f"{query}\n{' '.join(facts[:size])}" for query, size in zip(QUERIES, (4, 3, 2), strict=True)]
    return [tiny.preprocess(texts) for texts in (QUERIES, prompts, documents)]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of a loss."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"contrastive_weight": 0},
        {"listwise_weight": 0},
        {"localized_weight": 0.5},
        {"guard_weight": 3.0},
    ],
)
def test_gradient_caching_gives_the_same_gradients(model, bent, features, options):
    """Guards against gradient caching that loses a part, a column or the scaling of the loss, or saves no memory."""
    if options.get("localized_weight"):
        model.replace_listwise(query_weight=0.3)
    reference = bent if options.get("guard_weight") else None
    plain, cached = make_loss(model, reference, **options), make_loss(model, reference, **options, mini_batch_size=2)
    features = [features[COLUMNS.index(name)] for name in plain.columns]
    parts = plain(features, LABELS.pack())
    expected = gradients(model, total(parts))
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert norm > 1

    batches = []
    for embedder in (model, bent):
        embedder.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]["attention_mask"]))
    cached_parts = cached(features, LABELS.pack())
    assert list(cached_parts) == list(parts)
    for name, part in parts.items():
        torch.testing.assert_close(cached_parts[name], part, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(model, 8 * total(cached_parts)).items():
        # As a trainer clips them: the float32 rounding of this model's gradients, of up to 18, would be too large.
        torch.testing.assert_close(gradient / norm, 8 * expected[name] / norm, atol=1e-5, rtol=0)
    assert all(len(mask) <= 2 for mask in batches)
    with torch.no_grad():  # as an evaluation does
        evaluated = cached(features, LABELS.pack())
    assert not any(part.requires_grad for part in evaluated.values())
    torch.testing.assert_close(evaluated, {name: part.detach() for name, part in cached_parts.items()})


@pytest.mark.parametrize("cached", [{}, {"mini_batch_size": 2}])
@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"listwise_weight": 0}, (0, 2)),
        ({"contrastive_weight": 0}, (1, 2)),
        ({"contrastive_weight": 0, "listwise_weight": 0, "localized_weight": 1}, (1, 2)),
    ],
)
def test_columns_without_a_use_are_left_out(model, features, cached, options, needed):
    """Guards against stage I that has to come with listwise prompts."""
    loss = make_loss(model, **options, **cached)
    assert loss.columns == tuple(COLUMNS[index] for index in needed)
    assert len(loss([features[index] for index in needed], LABELS.pack())) == 1


def test_guard(model, bent, features):
    """Guards against a guard that pulls where nothing has moved, that counts padding, or that trains its reference."""
    options = {"contrastive_weight": 0, "guard_weight": 2.0}
    still = make_loss(model, copy.deepcopy(model), **options)(features, LABELS.pack())["guard"]
    assert still.item() == pytest.approx(0, abs=1e-6)
    assert max(gradient.abs().max() for gradient in gradients(model, still).values()) < 1e-4

    loss = make_loss(model, bent, **options)
    guard = loss(features, LABELS.pack())["guard"]
    present = LABELS.candidates.flatten()
    with torch.no_grad():
        cosines = [
            util.pairwise_cos_sim(*(embedder(dict(column))["sentence_embedding"] for embedder in (model, bent)))
            for column in (features[0], features[2])
        ]
    expected = 2 * ((1 - cosines[0]).mean() + (1 - cosines[1][present]).mean()) / 2
    torch.testing.assert_close(guard.detach(), expected)
    assert expected > 0.01
    guard.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in bent.parameters())
    assert not bent.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        ({"temperature": NAN}, "temperature must be a finite number"),
        ({"listwise_weight": -1}, "listwise_weight must be a finite number of at least 0, got -1"),
        ({"contrastive_weight": 0, "listwise_weight": 0}, "nothing would be trained"),
        ({"localized_weight": -1}, "localized_weight must be a finite number of at least 0, got -1"),
        ({"localized_scale": 0}, "localized_scale must be a finite number above 0, got 0"),
        ({"mini_batch_size": 0}, "mini_batch_size must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options, message):
    """Guards against an option that fails late, or trains something else."""
    with pytest.raises(ValueError, match=message):
        LossOptions(**options)


def test_options_of_a_different_loss(model):
    """Guards against a guard without a reference or on itself, and gradient caching that does not happen."""
    with pytest.raises(ValueError, match="no reference; give both"):
        make_loss(Uncalled(), guard_weight=1)
    with pytest.raises(ValueError, match="a reference; give both"):
        make_loss(Uncalled(), nn.Identity())
    with pytest.raises(ValueError, match="Got mini_batch_size=4 for E2RankLoss"):
        E2RankLoss(Uncalled(), LossOptions(mini_batch_size=4))
    with pytest.raises(ValueError, match="Got mini_batch_size=None for CachedE2RankLoss"):
        CachedE2RankLoss(Uncalled(), LossOptions())
    with pytest.raises(ValueError, match="shares parameters"):
        make_loss(model, model, guard_weight=1)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("cached", [{}, {"mini_batch_size": 2}])
def test_malformed_batches(model, features, cached):
    """Guards against columns in another order or number, and rows that do not belong to the labels."""
    with pytest.raises(ValueError, match=r"Got 2 input columns; give \('query', 'listwise', 'documents'\)"):
        make_loss(model, **cached)(features[::2], LABELS.pack())
    with pytest.raises(ValueError, match=r"Got 3 rows of documents for labels of the shape \(3, 4\)"):
        make_loss(model, **cached)([*features[:2], features[0]], LABELS.pack())
    with pytest.raises(ValueError, match="got NoneType; make it with SlateLabels"):
        make_loss(model, **cached)(features, None)


@pytest.mark.parametrize("cached", [{}, {"mini_batch_size": 2}])
def test_card_data(cached):
    """Guards against a model card that forgets an option: the configuration builds the same loss."""
    loss = make_loss(Uncalled(0.25), temperature=0.1, gather_across_devices=False, **cached)
    config = loss.get_config_dict()
    assert (config.pop("query_weight"), config["temperature"]) == (0.25, 0.1)
    assert make_loss(Uncalled(), **config).options == loss.options
    assert "2510.22733" in loss.citation


# --- several processes ------------------------------------------------------------------------------------------------


class Linear(Uncalled):
    """A model of one matrix, whose tokens are floats."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(random(DIMENSION, 3, seed=9))

    def forward(self, features: dict) -> dict:
        """One vector a row."""
        return {"sentence_embedding": features["input_ids"] @ self.weight}


GLOBAL = {
    "labels": [[2, 1], [None, None], [3, 1, 2], [0, 1, None]],
    "gold": [[0, 1], [0, 0], [1, 0, 0], [0, 1, 0]],
    "texts": [["a", "b"], ["c", "d"], ["e", "b", "f"], ["g", "a", "c"]],
}


def run_loss(rows: slice, options: dict) -> tuple[Tensor, Tensor]:
    """Parts of the loss and gradient of the matrix, for some of the slates."""
    known = SlateLabels.from_rows(*(column[rows] for column in GLOBAL.values()))
    columns = [
        random(4, DIMENSION, seed=1)[rows],
        random(4, DIMENSION, seed=2)[rows],
        text_vectors(known).flatten(0, 1),
    ]
    model, reference = Linear(), Linear()
    reference.weight.data += random(DIMENSION, 3, seed=4)
    # A high temperature: every candidate is to be seen in the sum.
    loss = make_loss(model, reference, temperature=2, guard_weight=1, localized_weight=1, **options)
    parts = loss([{"input_ids": column} for column in columns], known.pack())
    total(parts).backward()
    return torch.stack(list(parts.values())).detach(), model.weight.grad


RUNS = [{}, {"mini_batch_size": 2}]


def share_losses(folder: Path) -> None:
    """Compute a half of each loss in one of two processes, averaging as DDP does."""
    rank = torch.distributed.get_rank()
    for index, options in enumerate(RUNS):
        results = run_loss(slice(2 * rank, 2 * rank + 2), options)
        for tensor in results:
            torch.distributed.all_reduce(tensor)
            tensor /= 2
        if rank == 0:
            torch.save(results, folder / f"{index}.pt")


def test_gradient_caching_is_exact():
    """Guards against an error that hides behind float32's rounding."""
    expected = run_loss(slice(4), {})
    for size in (1, 2, 5):
        actual = run_loss(slice(4), {"mini_batch_size": size})
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


def test_two_processes_equal_one(two_processes):
    """Guards against negatives or gradients lost between processes, also where slates, pairs, positives are uneven."""
    assert len(SlateLabels.from_rows(*(column[:2] for column in GLOBAL.values())).labels[0]) == 2  # and 3 in the other
    for index, options in enumerate(RUNS):
        parts, gradient = torch.load(two_processes / f"{index}.pt")
        expected_parts, expected_gradient = run_loss(slice(4), options)
        torch.testing.assert_close(parts, expected_parts)
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("guard_weight", [0.0, 3.0])
def test_frozen_documents(model, bent, features, guard_weight):
    """Guards against gradients into documents that are frozen, with gradient caching and without, and lost ones else.

    The vectors are those of the model itself, so the parts are those of a loss that embeds the documents.
    """
    reference = bent if guard_weight else None
    options = {"guard_weight": guard_weight, "freeze_documents": True}
    query, listwise, documents = features
    vectors = model(dict(documents))["sentence_embedding"].detach()
    guarded = {name: values[:2] if isinstance(values, Tensor) else values for name, values in documents.items()}
    loss = make_loss(model, reference, **options)
    assert loss.columns == (COLUMNS if guard_weight else COLUMNS[:3])
    columns = [query, listwise, {"sentence_embedding": vectors}, guarded][: len(loss.columns)]
    parts = loss(columns, LABELS.pack())
    whole = E2RankLoss(model)(features, LABELS.pack())
    torch.testing.assert_close([parts[name] for name in whole], list(whole.values()))
    if guard_weight:
        expected = sum(
            drift(model(dict(column))["sentence_embedding"], bent(dict(column))["sentence_embedding"]).mean()
            for column in (query, guarded)
        )
        torch.testing.assert_close(parts["guard"], guard_weight * expected / 2)
    found = gradients(model, total(parts))
    cached = make_loss(model, reference, mini_batch_size=2, **options)
    torch.testing.assert_close(gradients(model, total(cached(columns, LABELS.pack()))), found, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="vectors"):
        loss([*features, guarded][: len(loss.columns)], LABELS.pack())
