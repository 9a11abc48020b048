"""A finished training run → the folder of the bundled model, with the reranking configuration chosen on dev.

    python recipes/e2rank-minilm-l6/ship.py build/stage2/final src/e2rank_st/bundled --query-weight 0.5

Tokenizer and code are left out, because the base has them. The adapter stays, with its configuration, the record of
the run, and a manifest with the hash of every file. The curves go beside this script.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from e2rank_st.adapters import CONFIG, WEIGHTS, read_adapter_config
from e2rank_st.console import reported_errors
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.storage import file_sha256, read_json, replacing, write_json

KEPT = (
    WEIGHTS, CONFIG, "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json",
    "tokenizer_config.json", "1_Pooling/config.json", "2_ListwiseRerank/config.json", "training.json",
)  # fmt: skip
CURVES = Path(__file__).with_name("curves.png")
MANIFEST = "manifest.json"
LISTWISE = "2_ListwiseRerank"


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder 'final' of a run.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the bundled model.")],
    num_prompt_documents: Annotated[int | None, typer.Option(metavar="K", help="Replaces the run's value.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(metavar="L", help="Replaces the run's value.")] = None,
    query_weight: Annotated[float | None, typer.Option(metavar="W", help="Replaces the run's value.")] = None,
) -> None:
    """Write the folder, whole or not at all."""
    changes = {
        "num_prompt_documents": num_prompt_documents,
        "max_prompt_tokens": max_prompt_tokens,
        "query_weight": query_weight,
    }
    with reported_errors("ship"):
        ship(run, folder, {name: value for name, value in changes.items() if value is not None})


def ship(run: Path, folder: Path, changes: dict[str, Any]) -> None:
    """Write the folder, whole or not at all, and the curves.

    Args:
        run: The folder ``final`` of a run.
        folder: The folder of the bundled model.
        changes: Arguments of ``ListwiseRerank`` that replace the run's.

    Raises:
        ValueError: The run did not train an adapter, or a change is not allowed.
        OSError: A file is missing or cannot be written.
    """
    read_adapter_config(run)
    curves = (run / CURVES.name).read_bytes()  # first: a missing file is an error before anything is replaced
    with replacing(folder) as fresh:
        fresh.mkdir()
        for name in KEPT:
            (fresh / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(run / name, fresh / name)
        config = fresh / LISTWISE / "config.json"
        told = read_json(config) | changes
        reranker = ListwiseRerank(**told)  # the same check as in the model
        write_json(config, {name: getattr(reranker, name) for name in told})
        write_json(fresh / MANIFEST, {"files": {name: file_sha256(fresh / name) for name in KEPT}})
    with replacing(CURVES) as fresh:
        fresh.write_bytes(curves)


if __name__ == "__main__":
    typer.run(main)
