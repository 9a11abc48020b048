"""A finished training run → the folder of a bundled model, with the reranking configuration chosen on dev.

    python recipes/bundled/ship.py build/minilm/final bundled --query-weight 0.6
    python recipes/bundled/ship.py build/mpnet/final bundled-mpnet --query-weight 0.6 --adapter-scale 0.5

The folder holds the prompt adapter, the reranking configuration, the record of the run, and a manifest with the hash of
every file. The curves go beside this script.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from e2rank_st.adapters import CONFIG, WEIGHTS, read_adapter_config
from e2rank_st.bundled import BUNDLED, Bundled
from e2rank_st.console import reported_errors
from e2rank_st.folders.check import HOME
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.storage import file_sha256, read_json, replacing, write_json

LISTWISE = f"{HOME}/config.json"
ADAPTER = f"{HOME}/{CONFIG}"
RECORD = "training.json"
KEPT = (f"{HOME}/{WEIGHTS}", ADAPTER, LISTWISE, RECORD)
COMMIT = re.compile("[0-9a-f]{40}")
CURVES = "curves.png"
MANIFEST = "manifest.json"
RECIPE = Path(__file__).parent


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder 'final' of a run.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"The bundled model: {' or '.join(BUNDLED)}.")],
    num_prompt_documents: Annotated[int | None, typer.Option(metavar="K", help="Replaces the run's value.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(metavar="L", help="Replaces the run's value.")] = None,
    query_weight: Annotated[float | None, typer.Option(metavar="W", help="Replaces the run's value.")] = None,
    adapter_scale: Annotated[float, typer.Option(metavar="S", help="Share of the trained change of weights.")] = 1.0,
) -> None:
    """Write the folder, whole or not at all."""
    changes = {
        "num_prompt_documents": num_prompt_documents,
        "max_prompt_tokens": max_prompt_tokens,
        "query_weight": query_weight,
    }
    with reported_errors("ship"):
        if name not in BUNDLED:
            raise ValueError(f"Got the bundled model {name!r}; give one of {', '.join(map(repr, BUNDLED))}.")
        ship(run, BUNDLED[name], {name: value for name, value in changes.items() if value is not None}, adapter_scale)


def ship(run: Path, bundled: Bundled, changes: dict[str, Any], scale: float = 1.0) -> None:
    """Write the folder, whole or not at all, and the curves.

    Args:
        run: The folder ``final`` of a run.
        bundled: The model.
        changes: Arguments of ``ListwiseRerank`` that replace the run's.
        scale: Share of the trained change of weights that the model gets: 0 is the base, 1 the run (WiSE-FT,
            arXiv 2109.01903).

    Raises:
        ValueError: The run trained no prompt adapter, or one of a different base; or a change is not allowed.
        OSError: A file is missing or cannot be written.
    """
    base = read_adapter_config(run / HOME)["base_model_name_or_path"]
    if base != bundled.base:
        raise ValueError(f"The adapter in {run} is one of {base}; the base of {bundled.name} is {bundled.base}.")
    curves = (run / CURVES).read_bytes()  # first: a missing file is an error before anything is replaced
    with replacing(bundled.folder) as fresh:
        for name in KEPT:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, fresh / name)
        config = read_json(fresh / ADAPTER)
        if scale != 1:
            config["lora_alpha"] *= scale
            write_json(fresh / RECORD, read_json(fresh / RECORD) | {"adapter_scale": scale})
        if not COMMIT.fullmatch(str(config["revision"])):  # a state of a cache that no one else has
            config["revision"] = None
        write_json(fresh / ADAPTER, config)
        told = read_json(fresh / LISTWISE) | changes
        reranker = ListwiseRerank(**told)  # the same check as in the model
        write_json(fresh / LISTWISE, {name: getattr(reranker, name) for name in told})
        write_json(fresh / MANIFEST, {"files": {name: file_sha256(fresh / name) for name in KEPT}})
    with replacing(RECIPE / f"{bundled.name}.png") as fresh:
        fresh.write_bytes(curves)


if __name__ == "__main__":
    typer.run(main)
