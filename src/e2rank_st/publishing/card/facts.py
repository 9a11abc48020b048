"""The folder of a trained adapter → the facts on its card; only small files are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from e2rank_st.adapters import CONFIG, WEIGHTS, read_adapter_config
from e2rank_st.benchmarks.training_data import TrainingData
from e2rank_st.folders.check import HOME
from e2rank_st.folders.saved import listwise_config
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.storage import read_json
from e2rank_st.training.record import JSON_NAME

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
        """Read a model's folder: an adapter, and the record of its training, which tells the facts of its base.

        Raises:
            OSError: A file is missing.
            ValueError: The folder holds no plain LoRA adapter, it was trained on data without a known licence, or its
                record is damaged.
        """
        keeps_vectors = (folder / HOME / CONFIG).is_file() and not (folder / CONFIG).is_file()
        home, training = folder / HOME if keeps_vectors else folder, read_json(folder / JSON_NAME)
        model = training.get("model")
        if not model:
            raise ValueError(f"{JSON_NAME} in {folder} does not describe the model. Train with this version.")
        return cls(
            name=folder.resolve().name,
            adapter=read_adapter_config(home),
            trained_parameters=_numbers(home / WEIGHTS),
            dimension=model["dimension"],
            pooling=model["pooling"],
            max_tokens=model["max_tokens"],
            prompts=model["prompts"],
            listwise=ListwiseRerank(**read_json(home / "config.json" if keeps_vectors else listwise_config(folder))),
            training=training,
            data=TrainingData.read(folder),
            context=model["positions"],
            keeps_vectors=keeps_vectors,
        )

    @property
    def base(self) -> str:
        """Hub id of the model that it was trained from."""
        return str(self.adapter["base_model_name_or_path"])


def _numbers(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no mapping
