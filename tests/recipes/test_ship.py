"""From a finished run to the folder of the bundled model."""

import hashlib
import json
from pathlib import Path

import pytest

from e2rank_st.training.record import stages
from e2rank_st.training.settings import parse_settings
from tests import ROOT, load_script

SETTINGS = ROOT / "recipes" / "e2rank-minilm-l6"
SHIPPED = ROOT / "src" / "e2rank_st" / "bundled"
ship = load_script("recipes/e2rank-minilm-l6/ship.py")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a run's ``final``, with files to ship and files to leave out."""
    monkeypatch.setattr(ship, "CURVES", tmp_path / "recipe" / "curves.png")
    for name in ship.KEPT:
        (tmp_path / "final" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "final" / name).write_bytes((SHIPPED / name).read_bytes())
    (tmp_path / "final" / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "final" / "curves.png").write_bytes(b"curves")
    return tmp_path / "final"


def test_what_is_shipped(run: Path, tmp_path: Path) -> None:
    """Guards against a manifest of other files, and against a lost change."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.json").write_text("{}", encoding="utf-8")
    ship.ship(run, folder, {"query_weight": 0.5})
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*ship.KEPT, ship.MANIFEST}
    assert ship.CURVES.read_bytes() == b"curves"
    hashes = json.loads((folder / ship.MANIFEST).read_text(encoding="utf-8"))["files"]
    assert hashes == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ship.KEPT}
    before, after = (json.loads((root / ship.LISTWISE / "config.json").read_text()) for root in (run, folder))
    assert after == before | {"query_weight": 0.5}


def test_the_shipped_model_is_made_by_the_recipe() -> None:
    """Guards against settings files that were changed after the run, and a record without its first stage."""
    pytest.importorskip("accelerate")
    runs = stages(json.loads((SHIPPED / "training.json").read_text(encoding="utf-8")))
    for name, run in zip(("stage1", "stage2"), runs, strict=True):
        told = json.loads(
            json.dumps(parse_settings([str(SETTINGS / f"{name}.yaml"), "--output_dir", "run"]).told, default=str)
        )
        own = {"output_dir", "resume", "use_cpu"}  # of the run, and of the machine
        assert {key: run["settings"][key] for key in run["settings"].keys() - own} == {
            key: told[key] for key in told.keys() - own
        }


@pytest.mark.parametrize(("changes", "message"), [({"query_weight": 2}, "0 to 1, got 2"), ({}, "No such file")])
def test_nothing_is_lost_by_a_bad_call(run: Path, tmp_path: Path, changes: dict, message: str) -> None:
    """Guards against a model folder that is gone after a mistake."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model").write_text("old", encoding="utf-8")
    if not changes:
        (run / "curves.png").unlink()
    with pytest.raises((ValueError, OSError), match=message):
        ship.ship(run, folder, changes)
    assert [path.name for path in folder.iterdir()] == ["model"]
