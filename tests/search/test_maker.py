"""A model's fingerprint: models that give other vectors are refused, and the difference has a name."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from e2rank_st import E2Rank
from e2rank_st.modeling_e2rank import E2RankPooling
from e2rank_st.search.maker import PROBES, Fingerprint, describe
from tests.toy import train_a_step, with_adapter, with_prompt_adapter, with_trained_adapter


@pytest.fixture(scope="module")
def made(tiny: E2Rank) -> Fingerprint:
    return Fingerprint.of(tiny)


def changed(model: E2Rank, change: Callable[[E2Rank], object]) -> E2Rank:
    model = copy.deepcopy(model)
    change(model)
    return model


def limit(tokens: int) -> Callable[[E2Rank], None]:
    return lambda model: setattr(model, "max_seq_length", tokens)


def pool_by_mean(model: E2Rank) -> None:
    model[1] = E2RankPooling(32, "mean")


def ignore_case(model: E2Rank) -> None:
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (limit(5), r"max_seq_length \(1024 then, 5 now\)\."),
        (limit(500), r"max_seq_length \(1024 then, 500 now\)\."),  # only a long text shows it
        (train_a_step, "weights"),
        (pool_by_mean, "E2RankPooling.pooling_mode_mean_tokens"),
        (lambda model: setattr(model, "truncate_dim", 16), r"dimension \(32 then, 16 now\)\."),
        (lambda model: model.prompts.update(document="passage: "), r"document prompt \('' then, 'passage: ' now\)\."),
        (ignore_case, "nothing that can be named, such as its tokenizer"),  # only a text with capitals shows it
    ],
)
def test_a_model_that_gives_other_vectors_is_refused(
    tiny: E2Rank, made: Fingerprint, change: Callable[[E2Rank], object], named: str
):
    """Guards against vectors of another model, which give scores and no error where the dimension is the same."""
    other = changed(tiny, change)
    with pytest.raises(ValueError, match=rf"does not give the vectors .* differs in .*{named}.*Build the index again"):
        made.check(other)
    with pytest.raises(ValueError, match="differs in"):
        Fingerprint.of(other).check(tiny)
    made.check(tiny)
    Fingerprint.of(other).check(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.prompts.update(query="another: "),
        lambda model: model.replace_listwise(num_prompt_documents=2),
        lambda model: model.double(),
        lambda model: model.bfloat16(),
    ],
)
def test_a_model_that_gives_the_same_vectors_passes(
    tiny: E2Rank, made: Fingerprint, change: Callable[[E2Rank], object]
):
    """Guards against an index that must be built again although nothing that it holds would change."""
    other = changed(tiny, change)
    made.check(other)
    Fingerprint.of(other).check(tiny)


def test_adapters(tiny: E2Rank, made: Fingerprint, checkpoint: Path, tmp_path: Path):
    """Guards against a merged adapter that is another model, and against a trained one that is the base."""
    made.check(with_adapter(tiny))  # it changes nothing yet, and its weights are named in another way
    adapted = with_trained_adapter(tiny).eval()
    with pytest.raises(ValueError, match="differs in weights"):
        made.check(adapted)
    adapted.transformers_model.name_or_path = str(checkpoint)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    merged = E2Rank.from_adapter(tmp_path / "adapter", device="cpu")
    assert describe(merged)["weights"] != describe(adapted)["weights"], "the premise"
    Fingerprint.of(adapted).check(merged)
    Fingerprint.of(merged).check(adapted)


def test_a_prompt_adapter_does_not_count(tiny: E2Rank, made: Fingerprint, bundled: E2Rank, shipped: E2Rank):
    """Guards against a bundled model that refuses the vectors of its base, which are its own."""
    for base, adapted in ((tiny, with_prompt_adapter(tiny)), (bundled, shipped)):
        assert adapted.listwise.adapter is not None, "the premise"
        assert describe(adapted) == describe(base)
    made.check(with_prompt_adapter(tiny))
    Fingerprint.of(bundled).check(shipped)
    with pytest.raises(ValueError, match="dimension"):
        made.check(shipped)


def test_every_probe_decides(tiny: E2Rank, made: Fingerprint):
    """Guards against vectors of no model beside the description of this one, and against a difference in one text."""
    draw = np.random.default_rng(0)
    for probe in range(len(PROBES)):
        vectors = made.vectors.copy()
        vectors[probe] = draw.normal(size=32)
        with pytest.raises(ValueError, match="nothing that can be named"):
            Fingerprint(made.maker, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).check(tiny)


def test_a_file_keeps_it(tiny: E2Rank, made: Fingerprint):
    """Guards against a fingerprint that changes on its way through JSON, and then refuses its own model."""
    read = Fingerprint.from_dict(json.loads(json.dumps(made.as_dict())) | {"further": "parts"})
    assert read.maker == made.maker == describe(tiny)
    np.testing.assert_array_equal(read.vectors, made.vectors)
    assert read.vectors.dtype == np.float32
    read.check(tiny)
    with pytest.raises(ValueError, match=r"max_seq_length \(1024 then, 5 now\)"):
        read.check(changed(tiny, limit(5)))
