"""A server and the name of the model on it → the modules of an E2Rank model whose vectors come from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AutoTokenizer

from e2rank_st.adapter_e2rank import ADAPTER_CONFIG
from e2rank_st.adapters import prompt_base
from e2rank_st.backends.module import PROMPT_SUFFIX, PromptBackend
from e2rank_st.backends.remote import RemoteBackend, Server
from e2rank_st.bundled import BUNDLED, base_here
from e2rank_st.checkpoints import UNTRAINED, find_checkpoint
from e2rank_st.folders.check import HOME
from e2rank_st.folders.hub import fetch
from e2rank_st.folders.saved import listwise_config
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.storage import read_json
from e2rank_st.wiring import saved_length, seal_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Settings", "connect", "read_settings"]


@dataclass(frozen=True)
class Settings:
    """What must be known here of a model whose weights are somewhere else.

    Attributes:
        tokenizer: Its tokenizer.
        max_seq_length: Most tokens of a text.
        prompts: Its retrieval prompts.
        listwise: Arguments of :class:`~e2rank_st.modeling_e2rank.ListwiseRerank`.
        has_adapter: Whether prompts are embedded with a prompt adapter.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int | None
    prompts: dict[str, str]
    listwise: dict[str, Any]
    has_adapter: bool = False


def read_settings(name: str) -> Settings:
    """Read a model's tokenizer and settings, without its weights.

    Args:
        name: The name of a bundled model, a folder, or a Hub id.

    Raises:
        OSError: The files cannot be read or downloaded.
        ValueError: They are not those of a model that this package knows.
    """
    if name in BUNDLED:
        return read_settings(str(BUNDLED[name].folder))
    folder = fetch(base_here(name), with_weights=False)
    adapted = (folder / HOME / ADAPTER_CONFIG).is_file()
    if adapted and not (folder / "modules.json").is_file():
        base = read_settings(prompt_base(folder)[0])
        return replace(base, listwise=read_json(folder / HOME / "config.json"), has_adapter=True)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not (folder / "modules.json").is_file():
        row = find_checkpoint(None, name, read_json(folder / "config.json").get("architectures") or ())
        seal_tokenizer(tokenizer, row.eos_token)
        return Settings(tokenizer, row.max_seq_length, {"query": row.query_prompt}, dict(row.listwise))
    try:
        listwise = read_json(listwise_config(folder))
    except ValueError:  # an embedding model
        listwise = dict(UNTRAINED)
    return Settings(tokenizer, _length(folder), _prompts(folder), listwise, adapted)


def _length(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    return (read_json(path) if path.is_file() else {}).get("max_seq_length") or saved_length(folder)


def _prompts(folder: Path) -> dict[str, str]:
    path = folder / "config_sentence_transformers.json"
    prompts: dict[str, str] = (read_json(path) if path.is_file() else {}).get("prompts") or {}
    return prompts


def connect(
    server: Server, settings: Settings, name: str, prompt_name: str | None = None, **listwise: Any
) -> list[nn.Module]:
    """Make the modules of a model whose vectors come from a server.

    Args:
        server: The server.
        settings: Those of the model.
        name: The server's name for the model.
        prompt_name: The server's name for the model with its prompt adapter. By default, if there is one, the name that
            ``e2rank serve`` gives it.
        **listwise: Arguments of :class:`~e2rank_st.modeling_e2rank.ListwiseRerank` instead of the model's.

    Raises:
        OSError: The server is not reachable, or fails.
        ValueError: The server has no model for prompts, or the tokenizer is not that of its model.
    """
    if prompt_name is None and settings.has_adapter:
        prompt_name = name + PROMPT_SUFFIX
        if prompt_name not in server.models():
            raise ValueError(
                f"The model embeds its listwise prompts with an adapter, and {server.url} has no model "
                f"{prompt_name!r}. Name the one with the adapter: prompt_model=..."
            )
    backend = RemoteBackend(server, name, settings.tokenizer, settings.max_seq_length)
    reranker = ListwiseRerank(**settings.listwise | listwise)
    if prompt_name is not None:
        prompts = RemoteBackend(server, prompt_name, settings.tokenizer, settings.max_seq_length)
        reranker.adapter = PromptBackend(prompts)  # type: ignore[assignment]
    return [backend, reranker]
