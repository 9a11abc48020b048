"""A checkpoint or an embedding model → the modules of an E2Rank model, wired by :mod:`e2rank_st.checkpoints`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import processors
from torch import nn
from transformers import PreTrainedTokenizerBase

from e2rank_st.checkpoints import UNTRAINED, Checkpoint
from e2rank_st.modeling_e2rank import E2RankPooling, ListwiseRerank, num_positions
from e2rank_st.prompts_e2rank import control_tokens
from e2rank_st.storage import read_json, write_json

__all__ = [
    "UNTRAINED_WARNING", "Lock", "check_device", "check_vocabulary", "make_tokenizer_portable", "saved_length",
    "seal_tokenizer", "untrained", "wire",
]  # fmt: skip

TOKENIZER_CONFIG, TRANSFORMER_CONFIG = "tokenizer_config.json", "sentence_bert_config.json"
UNTRAINED_WARNING = (
    "This model was trained to embed only, and not on listwise prompts: its listwise scores mean little. Train a "
    "prompt adapter, which keeps the vectors: e2rank train --prompt_adapter true --model NAME. Whether reranking helps "
    "on your queries as it is, e2rank tune measures. encode_query and encode_document are the model's own."
)


class Lock:
    """A lock that a model can hold: its copies have locks of their own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()


def wire(
    checkpoint: Checkpoint,
    model_name_or_path: str,
    hub: Mapping[str, Any],
    backend: Any = "torch",
    **options: Mapping[str, Any] | None,
) -> list[nn.Module]:
    """Load a checkpoint and wire it by its row, instead of guessing its pooling.

    Args:
        checkpoint: The row.
        model_name_or_path: A folder or a Hub id.
        hub: Options for the Hub: ``token``, ``cache_dir``, ``revision``, ``trust_remote_code``, ``local_files_only``.
        backend: Backend of Sentence-Transformers.
        **options: Its ``model_kwargs``, ``processor_kwargs`` and ``config_kwargs``.

    Returns:
        Transformer, pooling and listwise reranking.

    Raises:
        OSError: The checkpoint cannot be loaded.
        ValueError: The tokenizer lacks the row's end-of-text token.
    """
    given = {
        name: {**hub, **(options.get(name) or {})} for name in ("model_kwargs", "processor_kwargs", "config_kwargs")
    }
    # Saved with the tokenizer: control tokens inside a text are ordinary characters.
    given["processor_kwargs"].setdefault("split_special_tokens", True)
    transformer = Transformer(
        model_name_or_path,
        max_seq_length=checkpoint.max_seq_length,
        # Pinned: with a chat template in the tokenizer, ST would wrap every text into a message and drop its EOS.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
        **given,
        backend=backend,
    )
    seal_tokenizer(transformer.tokenizer, checkpoint.eos_token)
    reranker = ListwiseRerank(**checkpoint.listwise)
    # The row describes a family; one of its members may have fewer positions.
    positions = getattr(transformer.config, "max_position_embeddings", None) or reranker.max_prompt_tokens
    reranker.max_prompt_tokens = min(reranker.max_prompt_tokens, positions)
    pooling = E2RankPooling(transformer.get_embedding_dimension(), checkpoint.pooling_mode)
    return [transformer, pooling, reranker]


def untrained(model: SentenceTransformer) -> ListwiseRerank:
    """Make the reranking of an embedding model that was not trained for it. The model itself stays as it is.

    Args:
        model: A model of Sentence-Transformers without reranking.

    Raises:
        ValueError: It does not embed texts, token by token and without a chat template around them.
    """
    transformer = next(iter(model), None)
    # ST calls each text a message of a chat if the model has a template for messages.
    is_plain = isinstance(transformer, Transformer) and {"text", "message"} & {*transformer.modality_config} == {"text"}
    if not is_plain or not any(isinstance(module, Pooling) for module in model):
        modules = ", ".join(type(module).__name__ for module in model)
        raise ValueError(
            f"Cannot rerank with the modules {modules}: only models of texts work, with a Transformer that does not "
            "turn them into chat messages, and a Pooling. Choose another embedding model, or wire a plain checkpoint "
            "with E2Rank(path, preset=...)."
        )
    most = num_positions(model) or UNTRAINED["max_prompt_tokens"]
    return ListwiseRerank(**{**UNTRAINED, "max_prompt_tokens": min(UNTRAINED["max_prompt_tokens"], most)})


def check_vocabulary(model: SentenceTransformer) -> None:
    """Refuse a tokenizer that is not a fast one, or has an id without a row in the table of embeddings.

    Raises:
        ValueError: It is so.
    """
    tokenizer: PreTrainedTokenizerBase = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"Got a {type(tokenizer).__name__}; a fast tokenizer is needed. Save its tokenizer.json.")
    if model.transformers_model is None:  # its forward pass is somewhere else
        return
    rows = getattr(model.transformers_model.get_input_embeddings(), "num_embeddings", None)
    largest = max((*tokenizer.get_vocab().values(), *tokenizer("")["input_ids"]), default=-1)
    if rows is not None and largest >= rows:
        raise ValueError(
            f"The tokenizer has the id {largest}, and the table of embeddings only {rows} rows. "
            "Take the model's own tokenizer, or enlarge the table (resize_token_embeddings)."
        )


def seal_tokenizer(tokenizer: PreTrainedTokenizerBase, eos_token: str | None) -> None:
    """Make a tokenizer end every text with ``eos_token``, once, and mark all its added tokens as control tokens.

    The tokenizer's post-processor appends the EOS after truncation, so every runtime gives the same embeddings.
    ``split_special_tokens`` splits special tokens only; an added token such as ``<think>`` must become special, too.

    Args:
        tokenizer: A fast tokenizer, changed in place.
        eos_token: A token of its vocabulary, or ``None`` to keep the ends of texts.

    Raises:
        ValueError: If ``eos_token`` is not in the vocabulary.
    """
    for token in control_tokens(tokenizer):
        tokenizer.add_tokens(token, True)
    if eos_token is None:
        return
    eos_id = tokenizer.get_vocab().get(eos_token)
    if eos_id is None:
        raise ValueError(f"The tokenizer lacks the token {eos_token!r}; give the token that ends every text.")
    if tokenizer("a")["input_ids"][-1] == eos_id:
        return
    append = processors.TemplateProcessing(
        single=f"$A {eos_token}", pair=f"$A $B:1 {eos_token}:1", special_tokens=[(eos_token, eos_id)]
    )
    backend = tokenizer.backend_tokenizer
    present = [backend.post_processor] if backend.post_processor is not None else []
    backend.post_processor = processors.Sequence([*present, append])


def make_tokenizer_portable(model: SentenceTransformer, folder: Path) -> None:
    """Change the tokenizer that Sentence-Transformers saved, so that other libraries read it as it is meant.

    ``model_max_length`` becomes the number of the model's positions, because a listwise prompt may be longer than a
    document. Sentence-Transformers finds the length of a document among the arguments of its own configuration. There,
    ``max_seq_length`` would also limit vLLM. Transformers 4 knows neither the class ``TokenizersBackend`` nor a list of
    ``extra_special_tokens``; it reports the latter as a lack of protobuf.

    Args:
        model: The model that was saved.
        folder: Its folder.

    Raises:
        OSError: A file cannot be read or written.
    """
    tokenizer, transformer = (read_json(folder / name) for name in (TOKENIZER_CONFIG, TRANSFORMER_CONFIG))
    if positions := num_positions(model):
        tokenizer["model_max_length"] = positions
        transformer["processor_kwargs"] = {"model_max_length": model.max_seq_length}
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    write_json(folder / TOKENIZER_CONFIG, tokenizer)
    write_json(folder / TRANSFORMER_CONFIG, transformer)


def saved_length(folder: Path) -> int | None:
    """The most tokens of a document of a saved model; ``None`` if its folder does not say.

    Raises:
        OSError: A file cannot be read.
    """
    files = [
        read_json(path) if (path := folder / name).is_file() else {} for name in (TRANSFORMER_CONFIG, TOKENIZER_CONFIG)
    ]
    length: int | None = {**files[1], **files[0].get("processor_kwargs", {})}.get("model_max_length")
    return length


def check_device(device: Any) -> None:
    """Refuse a device that does not compute here, such as one that is not there, or ``meta``, which has no memory.

    Raises:
        ValueError: It is one.
    """
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises one of these
        raise ValueError(f"Got the device {device}, which does not work here ({error}); try cpu.") from error
