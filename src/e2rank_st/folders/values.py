"""A configuration file of a model → nothing, or a refusal of the first value that a folder may not set.

Sentence-Transformers and transformers pass values of these files on as keyword arguments. Some arguments run code, load
a pickle, or load a different repository. So a list names the arguments that a folder may set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from e2rank_st.adapter_e2rank import check_lora

__all__ = ["check_adapter", "check_settings", "check_types", "check_values"]

Types: TypeAlias = Mapping[str, tuple[type, ...]]

NONE = type(None)
TEXT, WHOLE, FLAG, OBJECT, LIST = (str, NONE), (int, NONE), (bool, NONE), (dict, NONE), (list, NONE)
# At any depth of any file: they name code, or files to read instead of those that were checked.
CODE_KEYS = {
    "auto_map", "custom_pipelines", "custom_generate", "code_revision", "configuration_files", "fast_tokenizer_files",
    "use_pretrained_backbone",
}  # fmt: skip
KERNEL = "_implementation"  # of attention or experts: a name with a slash is a repository with code
TRANSFORMER = "sentence_bert_config.json"
# File → key → types. Further keys stay open, since each architecture and tokenizer adds its own; CODE_KEYS are the ones
# among them that run code.
FILES: dict[str, Types] = {
    "config.json": {"model_type": (str,), "architectures": LIST, "dtype": TEXT, "torch_dtype": TEXT},
    "config_sentence_transformers.json": {
        "prompts": (dict,), "default_prompt_name": TEXT, "similarity_fn_name": TEXT, "model_type": (str,),
        "requirements": OBJECT, "__version__": (dict,),
    },
    "tokenizer_config.json": {
        "model_max_length": (int, float, NONE), "tokenizer_class": TEXT, "chat_template": (str, list, dict, NONE),
        "added_tokens_decoder": (dict,), "split_special_tokens": FLAG, "extra_special_tokens": (list, dict, NONE),
        "additional_special_tokens": LIST, "padding_side": TEXT, "truncation_side": TEXT,
        **{f"{name}_token": (str, dict, NONE) for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")},
    },
    "model.safetensors.index.json": {"weight_map": (dict,)},
}  # fmt: skip
MODEL_ARGUMENTS: Types = {"dtype": TEXT, "torch_dtype": TEXT, "attn_implementation": TEXT}
PROCESSOR_ARGUMENTS: Types = {
    "model_max_length": WHOLE, "padding_side": TEXT, "truncation_side": TEXT, "split_special_tokens": FLAG,
    "use_fast": FLAG,
}  # fmt: skip
CONFIG_ARGUMENTS: Types = {"is_causal": FLAG, "use_bidirectional_attention": FLAG, "use_cache": FLAG}
# The arguments of the transformer's module, and the arguments in some of them. All generations of names are here.
ARGUMENTS: dict[str, Types] = {
    "model_kwargs": MODEL_ARGUMENTS, "model_args": MODEL_ARGUMENTS,
    "processor_kwargs": PROCESSOR_ARGUMENTS, "tokenizer_args": PROCESSOR_ARGUMENTS,
    "config_kwargs": CONFIG_ARGUMENTS, "config_args": CONFIG_ARGUMENTS,
}  # fmt: skip
MODULE_ARGUMENTS: Types = {
    "max_seq_length": WHOLE, "do_lower_case": FLAG, "transformer_task": (str,), "modality_config": (dict,),
    "module_output_name": TEXT, "processing_kwargs": OBJECT, "unpad_inputs": FLAG, "query_length": WHOLE,
    "document_length": WHOLE, "query_expansion": OBJECT, **dict.fromkeys(ARGUMENTS, (dict,)),
}  # fmt: skip
MODALITY: Types = {"method": (str,), "method_output_name": (str, list, NONE), "format": TEXT}
METHODS = {"forward", "get_text_features"}  # of the model, which a folder may have called
REVISION = re.compile(r"\w[\w-]*(?:[./][\w-]+)*")  # a branch, a tag or a commit; no path
ADAPTER: Types = {"r": (int,), "lora_alpha": (int, float), "revision": TEXT, "auto_mapping": OBJECT}
# Of the modules behind the transformer; their classes check the values.
SETTINGS: Types = {
    "embedding_dimension": (int,), "word_embedding_dimension": (int,), "pooling_mode": (str, list),
    "include_prompt": (bool,), "in_features": (int,), "out_features": (int,), "bias": (bool,), "dimension": (int,),
    "activation_function": (str,), "module_input_name": (str,), "module_output_name": TEXT, "instruction": (str,),
    "prompt_format": (str, dict), "candidate_order": (str,), "query_weight": (int, float),
    "first_stage_weight": (int, float),
    "document_template": (str,), "long_documents": (str,),
}  # fmt: skip
PROMPT_FORMAT: Types = {
    "name": (str,), "template": (str,), "document": (str,), "separator": (str,), "chat": (bool,)
}  # fmt: skip


def check_values(name: str, values: Any) -> None:
    """Check a model's configuration file.

    Args:
        name: The file's name.
        values: The content of the file.

    Raises:
        ValueError: It is not a JSON object, a value has the wrong type, or a key could run code.
    """
    _check_code(name, values)
    if name.startswith("sentence_") and name.endswith("_config.json"):  # older ones: sentence_roberta_config.json, ...
        _check_transformer(name, values)
        return
    check_types(name, values, FILES.get(name, {}))
    for key, types in (("prompts", TEXT), ("__version__", TEXT), ("weight_map", (str,))):
        check_types(f"{name}: {key}", values.get(key, {}), dict.fromkeys(values.get(key, {}), types))


def check_settings(name: str, values: Any) -> None:
    """Check the configuration of a module behind the transformer.

    Raises:
        ValueError: It is not a JSON object, a value has the wrong type, or a key could run code.
    """
    _check_code(name, values)
    check_types(name, values, SETTINGS)
    if isinstance(values.get("prompt_format"), dict):
        check_types(f"{name}: prompt_format", values["prompt_format"], PROMPT_FORMAT)
    activation = values.get("activation_function", "torch.nn.")
    if not activation.startswith("torch.nn."):
        raise ValueError(f"{name} names the class {activation!r:.80}; allowed are those of torch.nn. Remove it.")


def check_types(name: str, values: Any, types: Types, *, closed: bool = False, needed: bool = False) -> None:
    """Check the keys and the types of a JSON object.

    Args:
        name: The object's name in errors.
        values: The object.
        types: Key → allowed types.
        closed: Whether other keys are refused.
        needed: Whether all keys must be there.

    Raises:
        ValueError: It is not an object, has a key too many or too few, or a value has the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} must hold a JSON object, got {type(values).__name__}. Save the model again.")
    if closed and (unknown := sorted(values.keys() - types.keys())):
        raise ValueError(f"{name} sets {unknown[0]!r}; a folder may set {', '.join(sorted(types))}. Remove it.")
    if needed and (missing := sorted(types.keys() - values.keys())):
        raise ValueError(f"{name} lacks {missing[0]!r}. Save the model again.")
    for key in types.keys() & values.keys():
        value = values[key]
        if not isinstance(value, types[key]) or (isinstance(value, bool) and bool not in types[key]):
            allowed = " or ".join("null" if kind is NONE else kind.__name__ for kind in types[key])
            raise ValueError(f"{name} sets {key!r} to {value!r:.80}; it must be {allowed}. Save the model again.")


def check_adapter(name: str, config: Any) -> None:
    """Check the configuration of an adapter.

    Raises:
        ValueError: It lacks a value, or the adapter is not plain LoRA.
    """
    _check_code(name, config)
    check_types(name, config, ADAPTER)
    if not isinstance(config.get("base_model_name_or_path"), str):
        raise ValueError(f"{name} does not name its base_model_name_or_path. Train the adapter again, or write it in.")
    if config.get("revision") is not None and not REVISION.fullmatch(config["revision"]):
        raise ValueError(f"{name} names its base's revision {config['revision']!r:.80}. Give a branch or a commit.")
    check_lora(name, config)
    library = (config.get("auto_mapping") or {}).get("parent_library")  # peft imports it
    if library is not None and not str(library).startswith("transformers."):
        raise ValueError(
            f"{name} names the library {library!r:.80} in auto_mapping, not one of transformers. Remove it."
        )


def _check_code(name: str, values: Any) -> None:
    """Check that no key, at any depth, makes transformers run code or load a different repository."""
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        place, value = waiting.pop()
        key = place.rpartition(".")[2]
        is_kernel = key.endswith(KERNEL) and any("/" in str(part) for part in _parts(value))
        if value and (key in CODE_KEYS or is_kernel):
            raise ValueError(
                f"{name} sets {place} to {value!r:.80}, which runs code of its own or loads a different repository. "
                "Remove it, or load with trust_remote_code=True if you trust its author."
            )
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting += [(f"{place}.{part}" if place else str(part), inner) for part, inner in items]


def _check_transformer(name: str, values: Any) -> None:
    """Check the arguments of the transformer's module, and the arguments within."""
    check_types(name, values, MODULE_ARGUMENTS, closed=True)
    for key in ARGUMENTS.keys() & values.keys():
        check_types(f"{name}: {key}", values[key], ARGUMENTS[key], closed=True)
    modalities, processing = values.get("modality_config", {}), values.get("processing_kwargs") or {}
    check_types(f"{name}: modality_config", modalities, dict.fromkeys(modalities, (dict,)))
    for key, value in modalities.items():
        place = f"{name}: modality_config.{key}"
        check_types(place, value, MODALITY, closed=True)
        if value.get("method", "forward") not in METHODS:
            raise ValueError(f"{place} sets 'method' to {value['method']!r:.80}; allowed are {sorted(METHODS)}.")
    check_types(f"{name}: processing_kwargs", processing, dict.fromkeys(processing, (dict,)))


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]
