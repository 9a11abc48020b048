"""A run → where its numbers come from: versions, hardware, the state of a folder; nothing of whose machine it is."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["fingerprint", "hardware", "processor", "scrubbed", "versions"]

PACKAGES = ("e2rank-st", "mteb", "sentence-transformers", "transformers", "torch", "datasets", "pytrec-eval-terrier")
TOKEN = re.compile(r"hf_\w{6,}")
# Of an absolute path the last part is enough; the slashes of a URL follow a colon or a letter.
PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\":,]+[/\\])+([^/\\\s'\":,]*)")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a score."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def processor() -> str:
    """The processor's name and number of cores used."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def hardware(device: torch.device) -> str:
    """What a model on this device runs on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def fingerprint(folder: Path) -> str:
    """A revision for a folder: equal for the same files, apart from hidden ones and texts for people."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and path.suffix != ".md" and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return f"sha256-{digest.hexdigest()[:12]}"


def scrubbed(text: str) -> str:
    """A message without access tokens, and with the last part only of every absolute path."""
    return PATH.sub(r"…/\1", TOKEN.sub("hf_***", text))
