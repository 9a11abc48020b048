"""From a finished run to the folder of a bundled model."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from e2rank_st.adapter_e2rank import LoraAdapter
from e2rank_st.bundled import BUNDLED, Bundled
from e2rank_st.training.settings import parse_settings
from tests import ROOT, load_script

RECIPE = ROOT / "recipes" / "bundled"
RECIPES = {"bundled": "minilm.yaml", "bundled-mpnet": "mpnet.yaml"}
ship = load_script("recipes/bundled/ship.py")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a run's ``final``, with files to ship and one to leave out."""
    monkeypatch.setattr(ship, "RECIPE", tmp_path / "recipe")
    shipped, final = BUNDLED["bundled"].folder, tmp_path / "final"
    for name in ship.KEPT:
        (final / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped / name, final / name)
    (final / "README.md").write_text("a run", encoding="utf-8")
    (final / "curves.png").write_bytes(b"curves")
    return final


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundled:
    """A bundled model with an older folder."""
    monkeypatch.setattr(Bundled, "folder", tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.json").write_text("{}", encoding="utf-8")
    return BUNDLED["bundled"]


def test_what_is_shipped(run: Path, model: Bundled) -> None:
    """Guards against a manifest of other files, and against a lost change."""
    ship.ship(run, model, {"query_weight": 0.25})
    found = {path.relative_to(model.folder).as_posix() for path in model.folder.rglob("*") if path.is_file()}
    assert found == {*ship.KEPT, ship.MANIFEST}
    assert (ship.RECIPE / "e2rank-minilm-l6.png").read_bytes() == b"curves"
    hashes = json.loads((model.folder / ship.MANIFEST).read_text(encoding="utf-8"))["files"]
    assert hashes == {name: hashlib.sha256((model.folder / name).read_bytes()).hexdigest() for name in ship.KEPT}
    before, after = (json.loads((folder / ship.LISTWISE).read_text()) for folder in (run, model.folder))
    assert after == before | {"query_weight": 0.25}


def test_a_share_of_the_trained_change(run: Path, model: Bundled) -> None:
    """Guards against a scale that loading does not see."""
    ship.ship(run, model, {}, scale=0.5)
    whole, half = (LoraAdapter.read(*(folder / name for name in ship.KEPT[1::-1])) for folder in (run, model.folder))
    assert json.loads((model.folder / "training.json").read_text(encoding="utf-8"))["adapter_scale"] == 0.5
    assert half.config == whole.config | {"lora_alpha": whole.config["lora_alpha"] / 2, "revision": None}
    weight, (down, up) = torch.zeros(3, 4), (torch.ones(half.config["r"], 4), torch.ones(3, half.config["r"]))
    assert torch.equal(half.changed(weight, down, up), whole.changed(weight, down, up) / 2)


@pytest.mark.parametrize(("revision", "shipped"), [("from-pypi", None), (None, None), ("0a" * 20, "0a" * 20)])
def test_a_revision_that_everybody_has(run: Path, model: Bundled, revision: str | None, shipped: str | None) -> None:
    """Guards against an adapter that asks the Hub for the state of somebody's cache."""
    told = json.loads((run / ship.ADAPTER).read_text(encoding="utf-8"))
    (run / ship.ADAPTER).write_text(json.dumps(told | {"revision": revision}), encoding="utf-8")
    ship.ship(run, model, {})
    assert json.loads((model.folder / ship.ADAPTER).read_text(encoding="utf-8")) == told | {"revision": shipped}


def test_an_unknown_name(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Guards against a traceback instead of the names that there are."""
    with pytest.raises(SystemExit):
        ship.main(run, "other")
    assert "Got the bundled model 'other'; give one of 'bundled'" in capsys.readouterr().err


@pytest.mark.parametrize("name", BUNDLED)
def test_a_shipped_model_is_made_by_the_recipe(name: str) -> None:
    """Guards against settings files that were changed after the run."""
    pytest.importorskip("accelerate")
    record = json.loads((BUNDLED[name].folder / "training.json").read_text(encoding="utf-8"))
    parsed = parse_settings([str(RECIPE / RECIPES[name]), "--output_dir", "run"])
    told = json.loads(json.dumps(parsed.told, default=str))
    own = {"output_dir", "resume", "use_cpu", "vectors"}  # of the run, and of the machine
    assert record["earlier"] is None
    assert {key: value for key, value in record["settings"].items() if key not in own} == {
        key: value for key, value in told.items() if key not in own
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"query_weight": 2}, "0 to 1, got 2"), ({}, "No such file"), (None, "is one of org/other")],
)
def test_nothing_is_lost_by_a_bad_call(run: Path, model: Bundled, changes: dict | None, message: str) -> None:
    """Guards against a model folder that is gone after a mistake."""
    if changes == {}:
        (run / "curves.png").unlink()
    if changes is None:
        config = run / ship.HOME / ship.CONFIG
        told = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(told | {"base_model_name_or_path": "org/other"}), encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=message):
        ship.ship(run, model, changes or {})
    assert [path.name for path in model.folder.iterdir()] == ["old.json"]
