"""A server and the name of the model on it → the modules of an E2Rank model whose vectors come from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AutoTokenizer

from e2rank_st.adapter_e2rank import ADAPTER_CONFIG
from e2rank_st.adapters import prompt_base
from e2rank_st.backends.module import PROMPT_SUFFIX, PromptBackend
from e2rank_st.backends.remote import RemoteBackend, Server
from e2rank_st.bundled import BASE, BUNDLED, base_here
from e2rank_st.checkpoints import UNTRAINED, find_checkpoint
from e2rank_st.folders.check import HOME
from e2rank_st.folders.hub import fetch
from e2rank_st.folders.saved import listwise_config
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.storage import read_json
from e2rank_st.wiring import saved_length, seal_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Settings", "choose", "connect", "read_settings"]


@dataclass(frozen=True)
class Settings:
    """What must be known here of a model whose weights are somewhere else.

    Attributes:
        tokenizer: Its tokenizer.
        max_seq_length: Most tokens of a text.
        options: Arguments of :class:`~e2rank_st.model.E2Rank`, such as its retrieval prompts.
        listwise: Arguments of :class:`~e2rank_st.modeling_e2rank.ListwiseRerank`.
        untrained: Whether the model was trained to embed only.
        has_adapter: Whether prompts are embedded with a prompt adapter.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int | None
    options: dict[str, Any]
    listwise: dict[str, Any]
    untrained: bool = False
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
    folder = fetch(base_here(BUNDLED["bundled"].base if name == BASE else name), with_weights=False)
    adapted = (folder / HOME / ADAPTER_CONFIG).is_file()
    if not (folder / "modules.json").is_file():
        if adapted:
            base = read_settings(prompt_base(folder)[0])
            listwise = read_json(folder / HOME / "config.json")
            return replace(base, listwise=listwise, untrained=False, has_adapter=True)
        return _of_checkpoint(folder, name)
    return _of_model(folder, name, adapted)


def _of_model(folder: Path, name: str, adapted: bool) -> Settings:
    """The settings of a model of Sentence-Transformers."""
    rows = read_json(folder / "modules.json")
    home, own = folder / str(rows[0]["path"]), _read(folder / "config_sentence_transformers.json")
    transformer = _read(home / "sentence_bert_config.json")
    limits = (transformer.get("processing_kwargs") or {}).get("text") or {}
    poolings = [_read(folder / str(row["path"]) / "config.json") for row in rows[1:]]
    if transformer.get("query_length") or transformer.get("document_length"):
        raise ValueError(f"{name} has different limits for queries and documents, so it cannot be remote.")
    if any(pooling.get("include_prompt") is False for pooling in poolings):
        raise ValueError(f"The pooling of {name} leaves prompts out, and a server does not, so it cannot be remote.")
    try:
        listwise, untrained = read_json(listwise_config(folder)), False
    except ValueError:  # an embedding model
        listwise, untrained = _fitting(UNTRAINED, home), True
    length = limits.get("max_length") or transformer.get("max_seq_length") or saved_length(home)
    return Settings(
        AutoTokenizer.from_pretrained(str(home), trust_remote_code=False),
        None if limits.get("truncation", True) in (False, "do_not_truncate") else length,
        {key: own[key] for key in ("prompts", "default_prompt_name", "similarity_fn_name") if own.get(key)},
        listwise,
        untrained=untrained,
        has_adapter=adapted,
    )


def _of_checkpoint(folder: Path, name: str) -> Settings:
    """The settings of a plain checkpoint, as :func:`~e2rank_st.wiring.wire` makes them."""
    row = find_checkpoint(None, name, read_json(folder / "config.json").get("architectures") or ())
    tokenizer = AutoTokenizer.from_pretrained(str(folder), split_special_tokens=True, trust_remote_code=False)
    seal_tokenizer(tokenizer, row.eos_token)
    listwise = _fitting(ListwiseRerank(**row.listwise).get_config_dict(), folder)
    options = {"prompts": {"query": row.query_prompt}}
    return Settings(tokenizer, row.max_seq_length, options, listwise, untrained=not row.reranks)


def _fitting(listwise: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """Settings of reranking whose prompts are not longer than the model's positions."""
    most = listwise["max_prompt_tokens"]
    positions = _read(home / "config.json").get("max_position_embeddings") or most
    return {**listwise, "max_prompt_tokens": min(most, positions)}


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def choose(server: Server, tokenizer: str, prompt_name: str | None = None) -> str:
    """Choose the server's model for texts: the only one, or the one that has the tokenizer's name.

    Args:
        server: The server.
        tokenizer: The name of the tokenizer's model.
        prompt_name: The server's name for the model of prompts, if it is known.

    Raises:
        OSError: The server is not reachable, or fails.
        ValueError: It lists several models, and none has that name.
    """
    listed = [name for name in server.models() if name != prompt_name and not name.endswith(PROMPT_SUFFIX)]
    if len(listed) == 1:
        return listed[0]
    if listed and tokenizer not in listed:
        names = ", ".join(map(repr, listed[:10]))
        raise ValueError(f"{server.url} has {len(listed)} models; give the name of one: model=... ({names:.500}).")
    return tokenizer


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
    named, prompt_name = prompt_name, prompt_name or (name + PROMPT_SUFFIX if settings.has_adapter else None)
    if prompt_name is not None:
        listed = server.models()
        # Some servers take any name, and would embed the prompts without the adapter.
        if prompt_name not in listed and (listed or not named):
            raise ValueError(
                f"The model embeds its listwise prompts with an adapter, and {server.url} has no model "
                f"{prompt_name!r}. Name the one with the adapter: prompt_model=..."
            )
    reranker = ListwiseRerank(**settings.listwise | listwise)
    backend = prompts = RemoteBackend(server, name, settings.tokenizer, settings.max_seq_length)
    if prompt_name is not None:
        prompts = RemoteBackend(server, prompt_name, settings.tokenizer, settings.max_seq_length)
        reranker.adapter = PromptBackend(prompts)  # type: ignore[assignment]
    if reranker.format.chat and not prompts.takes_ids and prompts.adds_tokens:
        raise ValueError(
            f"A prompt of the format {reranker.format.name!r} does not end with the tokenizer's end token, and "
            f"{server.url} takes texts only, and ends them with it. Use a server that takes token ids: vLLM or TEI."
        )
    prompts.check_length(reranker.max_prompt_tokens)
    return [backend, reranker]
