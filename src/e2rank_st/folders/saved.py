"""A folder that Sentence-Transformers saved → one that others load as it is meant: code, packages, card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformerModelCardData

from e2rank_st.adapter_e2rank import ADAPTER_CONFIG
from e2rank_st.modeling_e2rank import E2RankPooling, ListwiseRerank
from e2rank_st.storage import read_json, write_json

__all__ = ["E2RankModelCardData", "listwise_config", "make_portable", "require"]

REQUIREMENTS = {"sentence-transformers": ">=6.1"}
ADAPTER_REQUIREMENTS = {**REQUIREMENTS, "peft": ">=0.18"}
# A CrossEncoder would build a head of random weights, and rank by it. It looks here for the function of its output:
# there is none of this name, so loading fails with it. A SentenceTransformer does not look.
NO_CROSS_ENCODER = {"activation_fn": "torch.nn.modules.load_this_as_SentenceTransformer_not_as_CrossEncoder.Rerank"}


@dataclass
class E2RankModelCardData(SentenceTransformerModelCardData):
    """The data of Sentence-Transformers' automatic card, whose example also reranks."""

    task_name: str = "retrieval, listwise reranking, semantic textual similarity, clustering, and more"

    def generate_usage_snippet(self) -> str:
        """Returns the example of the card, as a Python block."""
        first, call, rest = super().generate_usage_snippet().partition("model = SentenceTransformer(")
        name, end, rest = rest.partition(")")
        code = f"{first}{call}{name}, trust_remote_code=True{end}{rest}".removesuffix("\n```")
        texts = "queries[0], documents" if self.ir_model else "sentences[0], sentences[1:]"
        return f"{code}\n\n# Rerank: the best first\nprint(model.rerank({texts}))\n```"


def make_portable(folder: Path) -> None:
    """Change ST's folder: refer to its own code file, move the pooling to ``1_Pooling``, and name what loading needs.

    Args:
        folder: The folder.
    """
    require(folder)
    config = folder / "config.json"
    if config.is_file():
        write_json(config, dict(sorted((read_json(config) | {"sentence_transformers": NO_CROSS_ENCODER}).items())))
    target = folder / "modules.json"
    rows, left_over = read_json(target), []
    for row in rows:
        module, _, name = row["type"].rpartition(".")
        if module == ListwiseRerank.__module__:
            row["type"] = f"modeling_e2rank.{name}"
        if name == E2RankPooling.__name__:
            written, row["path"] = row["path"], f"{row['idx']}_Pooling"
            (folder / row["path"]).mkdir(exist_ok=True)
            shutil.copyfile(folder / written / "config.json", folder / row["path"] / "config.json")
            left_over.append(folder / written)
    write_json(target, rows)
    for path in folder.rglob("*.safetensors"):  # safetensors makes its files private
        path.chmod(target.stat().st_mode)
    for path in left_over:  # last: the old place is in use until modules.json names the new one
        shutil.rmtree(path)


def listwise_config(folder: Path) -> Path:
    """Find the file with the reranking configuration of a saved model.

    Raises:
        ValueError: The model cannot rerank.
        OSError: The folder is not a model.
    """
    for row in read_json(folder / "modules.json"):
        if row["type"].endswith(f".{ListwiseRerank.__name__}"):
            return folder / str(row["path"]) / "config.json"
    raise ValueError(f"{folder} lacks a ListwiseRerank module, so it has no reranking configuration.")


def require(folder: Path) -> None:
    """Name the packages that loading needs; Sentence-Transformers checks their versions before it loads the weights."""
    requirements = ADAPTER_REQUIREMENTS if (folder / ADAPTER_CONFIG).is_file() else REQUIREMENTS
    path = folder / "config_sentence_transformers.json"
    write_json(path, read_json(path) | {"requirements": requirements})
