"""A built folder → its vectors and rankings, as a stranger's machine computes them.

``verification`` runs this as a script, ``python -I probe.py``, in a folder of its own. It imports nothing of this
package. It hides all installed packages but Sentence-Transformers and its requirements, and refuses connections.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import Any, TypeAlias

from packaging.utils import canonicalize_name

Job: TypeAlias = dict[str, Any]


class _Visible(PathFinder):
    """Finds all installed modules but those in ``hidden``, and only the distributions in ``visible``."""

    hidden: frozenset[str] = frozenset()
    visible: frozenset[str] | None = None

    @classmethod
    def find_distributions(cls, context: Any = None) -> Any:
        """The visible distributions: some packages ask by metadata whether another one is installed."""
        for found in PathFinder.find_distributions(context):
            if cls.visible is None or canonicalize_name(found.metadata["Name"]) in cls.visible:
                yield found

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Nothing for a hidden package, as if it were not installed."""
        return None if fullname.partition(".")[0] in cls.hidden else super().find_spec(fullname, path, target)


def main() -> None:
    """Do the tasks of ``job.json``. After each of them, ``results.json`` holds the results so far.

    Raises:
        RuntimeError: A hidden module can be imported.
    """
    job, results = json.loads(Path("job.json").read_text(encoding="utf-8")), {}
    sys.path[:0] = job["path"]
    _isolate(frozenset(job["hidden"]), frozenset(job["visible"]) or None)
    for task in job["tasks"]:
        results[task] = TASKS[task](job)
        Path("results.json").write_text(json.dumps(results), encoding="utf-8")


def _isolate(hidden: frozenset[str], visible: frozenset[str] | None) -> None:
    _Visible.hidden, _Visible.visible = hidden, visible
    # Also drops the finders of editable installs.
    kept: list[Any] = [finder for finder in sys.meta_path if finder in (BuiltinImporter, FrozenImporter)]
    sys.meta_path[:] = [*kept, _Visible]
    for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
        del sys.modules[name]  # an installed .pth file had it imported
    for name in hidden:
        if importlib.util.find_spec(name) is not None:
            raise RuntimeError(f"{name} could be imported, so this would not be a stranger's machine")
    sys.addaudithook(_refuse_connections)  # below Python's socket module, and not to be taken back


def _refuse_connections(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        raise PermissionError(f"{event} {arguments[1:]}: the network is off while a build is verified")


def _load(name: str, **options: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(name, device="cpu", **options)


def _embed(model: Any, job: Job) -> dict[str, Any]:
    queries, documents = model.encode_query(job["queries"]), model.encode_document(job["documents"])
    return {"encode_query": queries.tolist(), "encode_document": documents.tolist()}


def rank(model: Any, job: Job) -> dict[str, Any]:
    """Vectors and scores of a model for the texts of a job; a ranking as the score of each candidate.

    Args:
        model: A model with ``rerank``.
        job: Its ``queries`` and ``documents``.
    """
    results = _embed(model, job)
    for order in ("given", "similarity"):
        rankings = model.rerank(job["queries"], job["documents"], candidate_order=order, show_progress_bar=False)
        results[f"rerank {order}"] = [
            [hit["score"] for hit in sorted(ranking, key=lambda hit: hit["corpus_id"])] for ranking in rankings
        ]
    return results


def _embedding(job: Job) -> dict[str, Any]:
    """The ``embedding`` revision, without a flag."""
    results = _embed(_load(job["repo_id"], revision="embedding"), job)
    if any(name.startswith("transformers_modules") for name in sys.modules):
        raise RuntimeError("code of the repository was run, although it was not allowed")
    return results


def _plain(job: Job) -> dict[str, Any]:
    """``main`` as other runtimes read it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(job["main"])
    tokenizer, backbone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]

    def embed(text: str) -> list[float]:
        tokens = tokenizer(text, truncation=True, return_tensors="pt")
        states = backbone(**tokens).last_hidden_state[0].float()  # (L, D)
        first, last = pooling["pooling_mode_cls_token"], pooling["pooling_mode_lasttoken"]
        pooled = states[0] if first else states[-1] if last else states.mean(0)
        vector: list[float] = torch.nn.functional.normalize(pooled, dim=-1).tolist()
        return vector

    with torch.inference_mode():
        return {
            "encode_query": [embed(prompts.get("query", "") + text) for text in job["queries"]],
            "encode_document": [embed(prompts.get("document", "") + text) for text in job["documents"]],
        }


def _remote(job: Job) -> dict[str, Any]:
    """``main`` by the repository's id, with its code; saved once more for the next task."""
    model = _load(job["repo_id"], trust_remote_code=True)
    model.save_pretrained("again", create_model_card=False)
    return rank(model, job)


def _again(job: Job) -> dict[str, Any]:
    """The model that was saved, and the Python of the cards."""
    return {**rank(_load("again", trust_remote_code=True), job), **_blocks(job)}


def _blocks(job: Job) -> dict[str, Any]:
    """Run the blocks of each card, in order and in one namespace, without their output."""
    for card, blocks in job["blocks"].items():
        namespace: dict[str, Any] = {"__name__": "__main__"}
        for number, code in enumerate(blocks, 1):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(code, f"<Python block {number} of the card of {card}>", "exec"), namespace)
    return {}


TASKS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "embedding": _embedding,
    "plain": _plain,
    "remote": _remote,
    "again": _again,
    "blocks": _blocks,
}

if __name__ == "__main__":
    main()
