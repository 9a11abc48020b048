"""A model's name → a folder of this machine: the files that loading may read, of one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from e2rank_st.folders.check import FILES

__all__ = ["fetch"]


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    more: tuple[str, ...] = (),
) -> Path:
    """Find a model's folder; download it if the name is a Hub id.

    Args:
        name: A folder or a Hub id.
        revision: Branch, tag or commit of the Hub.
        token: Of the Hub.
        cache_folder: Folder of the downloads; by default that of the Hub's client.
        local_files_only: Whether to read the cache only.
        more: Patterns of files that are also downloaded.

    Raises:
        OSError: The files cannot be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    patterns = [*FILES, *more]
    return Path(
        snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_folder,
            local_files_only=local_files_only,
            allow_patterns=patterns,
        )
    )
