"""A model's name → a folder of this machine: the files that loading may read, of one commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import get_session, snapshot_download

from e2rank_st.folders.check import FILES

__all__ = ["distrust", "fetch"]

LONGEST_WAIT = 60  # seconds, also where the Hub asks for more
ABOVE_LONGEST = re.compile(r"\d{3,}|[7-9]\d|6[1-9]")  # the numbers that are
SILENCE = 120.0  # seconds without a byte, after which a connection is broken


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    more: tuple[str, ...] = (),
    with_weights: bool = True,
) -> Path:
    """Find a model's folder; download it if the name is a Hub id.

    Args:
        name: A folder or a Hub id.
        revision: Branch, tag or commit of the Hub.
        token: Of the Hub.
        cache_folder: Folder of the downloads; by default that of the Hub's client.
        local_files_only: Whether to read the cache only.
        more: Patterns of files that are also downloaded.
        with_weights: Whether to download the weights, too.

    Raises:
        OSError: The files cannot be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    distrust()
    patterns = [*FILES, *more]
    return Path(
        snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_folder,
            local_files_only=local_files_only,
            allow_patterns=patterns,
            ignore_patterns=None if with_weights else "*.safetensors",
        )
    )


def distrust() -> None:
    """Limit the waits of the session that the Hub's client uses: it sleeps as long as a server says."""
    session = get_session()
    if _cut_waits not in session.event_hooks["response"]:
        session.event_hooks["response"].append(_cut_waits)
    if session.timeout.read is None:
        session.timeout = SILENCE


def _cut_waits(response: Any) -> None:
    """Hook of the client's session: it sleeps as long as these two headers say."""
    for name in ("Retry-After", "RateLimit"):
        if name in response.headers:
            response.headers[name] = ABOVE_LONGEST.sub(f"{LONGEST_WAIT}", response.headers[name])
