"""The folder of a trained adapter → the facts on its card; only small files are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from e2rank_st.adapters import CONFIG, WEIGHTS, adapter_name, read_adapter_config
from e2rank_st.benchmarks.training_data import TrainingData
from e2rank_st.checkpoints import find_checkpoint
from e2rank_st.folders.check import HOME
from e2rank_st.modeling_e2rank import E2RankPooling, ListwiseRerank
from e2rank_st.storage import read_json
from e2rank_st.training.record import JSON_NAME
from e2rank_st.wiring import saved_length

__all__ = ["Facts"]


@dataclass(frozen=True)
class Facts:
    """A trained model.

    Attributes:
        adapter: ``adapter_config.json``.
        trained_parameters: Numbers in the adapter.
        dimension: D.
        pooling: How token embeddings become one vector.
        max_tokens: Most tokens of a query or document.
        prompts: Texts before queries and documents.
        training: ``training.json``.
        data: The data that it was trained on and chosen by.
        context: Most tokens that the base takes at a time.
        keeps_vectors: Whether only prompts were trained, so that all other vectors are the base's.
    """

    name: str
    adapter: Mapping[str, Any]
    trained_parameters: int
    dimension: int
    pooling: str
    max_tokens: int
    prompts: Mapping[str, str]
    listwise: ListwiseRerank
    training: Mapping[str, Any]
    data: TrainingData
    context: int
    keeps_vectors: bool = False

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Read a model's folder.

        Raises:
            OSError: A file is missing.
            ValueError: The folder holds no plain LoRA adapter of an E2Rank model, its base is unknown, or it was
                trained on data without a known licence.
        """
        if (folder / HOME / CONFIG).is_file() and not (folder / "modules.json").is_file():
            return cls._of_prompts(folder)
        adapter = read_adapter_config(folder)
        known = find_checkpoint(repository=adapter["base_model_name_or_path"])
        pooling = _module_config(folder, E2RankPooling)
        return cls(
            name=adapter_name(folder),
            adapter=adapter,
            trained_parameters=_numbers(folder / WEIGHTS),
            dimension=pooling["word_embedding_dimension"],
            pooling=next(mode for mode, key in E2RankPooling.STOCK_KEYS if pooling[key]),
            max_tokens=saved_length(folder) or 0,
            prompts=read_json(folder / "config_sentence_transformers.json")["prompts"],
            listwise=ListwiseRerank(**_module_config(folder, ListwiseRerank)),
            training=read_json(folder / JSON_NAME),
            data=TrainingData.read(folder),
            context=known.positions,
        )

    @classmethod
    def _of_prompts(cls, folder: Path) -> Facts:
        """Read the folder of a prompt adapter alone: the record of its training tells the base's facts."""
        home, training = folder / HOME, read_json(folder / JSON_NAME)
        model = training.get("model")
        if not model:
            raise ValueError(f"{JSON_NAME} in {folder} does not describe the base (model). Train with this version.")
        return cls(
            name=adapter_name(folder),
            adapter=read_adapter_config(home),
            trained_parameters=_numbers(home / WEIGHTS),
            dimension=model["dimension"],
            pooling=model["pooling"],
            max_tokens=model["max_tokens"],
            prompts=model["prompts"],
            listwise=ListwiseRerank(**read_json(home / "config.json")),
            training=training,
            data=TrainingData.read(folder),
            context=model["positions"],
            keeps_vectors=True,
        )

    @property
    def base(self) -> str:
        """Hub id of the model that it was trained from."""
        return str(self.adapter["base_model_name_or_path"])


def _module_config(folder: Path, cls: type) -> dict[str, Any]:
    """The configuration of a module of the model, where ``modules.json`` says that it is."""
    paths = [row["path"] for row in read_json(folder / "modules.json") if row["type"].endswith(f".{cls.__name__}")]
    if len(paths) != 1:
        raise ValueError(
            f"modules.json in {folder} names {len(paths)} modules {cls.__name__}; an E2Rank model has one."
        )
    return dict(read_json(folder / paths[0] / "config.json"))


def _numbers(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no mapping
