"""A finished training run → the folder of the bundled model, with the reranking configuration that was chosen on dev.

    python recipes/e2rank-minilm-l6/ship.py build/stage2/final src/e2rank_st/bundled --query-weight 0.5

What belongs to the base is left out (tokenizer, code): it comes with the base. What stays is the adapter, the
configuration, the record of the run, and a manifest with the hash of every file. The curves go beside this script.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from e2rank_st.adapters import CONFIG, WEIGHTS, read_adapter_config
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.storage import replacing

KEPT = (
    WEIGHTS, CONFIG, "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json",
    "tokenizer_config.json", "1_Pooling/config.json", "2_ListwiseRerank/config.json", "training.json",
)  # fmt: skip
CURVES = Path(__file__).with_name("curves.png")
MANIFEST = "manifest.json"
LISTWISE = "2_ListwiseRerank"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder, whole or not at all."""
    options = _parser().parse_args(argv)
    read_adapter_config(options.run)
    changes = {
        name: getattr(options, name)
        for name in ("num_prompt_documents", "max_prompt_tokens", "query_weight")
        if getattr(options, name) is not None
    }
    curves = (options.run / CURVES.name).read_bytes()  # first: what is missing shows before anything is replaced
    with replacing(options.folder) as fresh:
        fresh.mkdir()
        for name in KEPT:
            (fresh / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(options.run / name, fresh / name)
        _configure(fresh / LISTWISE / "config.json", changes)
        _write(fresh / MANIFEST, {"files": {name: _sha256(fresh / name) for name in KEPT}})
    with replacing(CURVES) as fresh:
        fresh.write_bytes(curves)


def _configure(path: Path, changes: dict[str, object]) -> None:
    """Change the reranking configuration, checked as the model checks it."""
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    reranker = ListwiseRerank(**config)
    _write(path, {name: getattr(reranker, name) for name in reranker.config_keys})


def _write(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder 'final' of a run")
    parser.add_argument("folder", type=Path, help="the folder of the bundled model")
    parser.add_argument("--num-prompt-documents", type=int, metavar="K", help="instead of the run's")
    parser.add_argument("--max-prompt-tokens", type=int, metavar="L", help="instead of the run's")
    parser.add_argument("--query-weight", type=float, metavar="W", help="instead of the run's")
    return parser


if __name__ == "__main__":
    main()
