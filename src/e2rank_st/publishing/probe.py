"""A built folder → its vectors and rankings, as a stranger's machine computes them.

``sandbox`` runs this as a script, ``python -I probe.py``, in a folder of its own. It imports nothing of this package.
It limits its memory, hides all installed packages but Sentence-Transformers and its requirements, and refuses
connections. Where the system allows that, there is no network, not even for the processes that it starts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import Any, TypeAlias

from packaging.utils import canonicalize_name

Job: TypeAlias = dict[str, Any]

MOST_THREADS = 4096  # of this user in this namespace


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
    _limit(job["memory"])
    sys.path[:0] = job["path"]
    _isolate(frozenset(job["hidden"]), frozenset(job["visible"]) or None)
    for task in job["tasks"]:
        results[task] = TASKS[task](job)
        Path("results.json").write_text(json.dumps(results), encoding="utf-8")


def _limit(memory: int) -> None:
    """Limit the bytes that this process, and each that it starts, may allocate and write into one file."""
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        # Not the address space: torch maps far more of it than it uses.
        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):
            resource.setrlimit(kind, (memory, memory))
        # For a process that forks without end, until it is seen and killed; root is not bound by it.
        most = min(MOST_THREADS, resource.getrlimit(resource.RLIMIT_NPROC)[1] % 2**64)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


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

    return SentenceTransformer(name, **{"device": "cpu", **options})


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
    """``main`` as other runtimes read it: embedding, and the listwise prompt by the recipe on the card."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder, prompt = Path(job["main"]), job["prompt"]
    tokenizer, backbone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    mode = pooling.get("pooling_mode")  # of Sentence-Transformers 6; before, each mode had a key
    places = {"cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]

    def embed(tokens: Any) -> list[float]:
        states = backbone(**tokens).last_hidden_state[0].float()  # (L, D)
        first, last = (mode == name or pooling.get(key) for name, key in places.items())
        pooled = states[0] if first else states[-1] if last else states.mean(0)
        vector: list[float] = torch.nn.functional.normalize(pooled, dim=-1).tolist()
        return vector

    def tokens(text: str) -> Any:
        return tokenizer(text, truncation=True, max_length=job["length"], return_tensors="pt")

    if prompt["chat"]:
        message = [{"role": "user", "content": prompt["text"]}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        listwise = tokenizer(text, split_special_tokens=False, add_special_tokens=False, return_tensors="pt")
    else:
        listwise = tokenizer(prompt["text"], return_tensors="pt")
    if (ids := listwise["input_ids"][0].tolist()) != prompt["ids"]:
        raise RuntimeError(f"the listwise prompt has the token ids {ids}, the source model's has {prompt['ids']}")
    with torch.inference_mode():
        return {
            "encode_query": [embed(tokens(prompts.get("query", "") + text)) for text in job["queries"]],
            "encode_document": [embed(tokens(prompts.get("document", "") + text)) for text in job["documents"]],
            "listwise prompt": [embed(listwise)],
        }


def _tokenizer(job: Job) -> dict[str, Any]:
    """Whatever a tokenizer does before a model sees a text. A folder's template and patterns may take for ever."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(job["main"]))
    tokenizer(job["texts"], truncation=True, max_length=32)
    if tokenizer.chat_template:
        message = [{"role": "user", "content": job["texts"][0]}]
        tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return {}


def _remote(job: Job) -> dict[str, Any]:
    """``main`` by the repository's id, with its code; saved once more for the next task."""
    model = _load(job["repo_id"], trust_remote_code=True)
    if job["base"] and job["base"]["is_stock"]:
        _check_base(model, _load(job["base"]["name"], revision=job["base"]["revision"]), job)
    model.save_pretrained("again", create_model_card=False)
    return rank(model, job)


def _again(job: Job) -> dict[str, Any]:
    """The model that was saved, and the Python of our own card."""
    return {**rank(_load("again", trust_remote_code=True), job), **_blocks(job)}


def _package(job: Job) -> dict[str, Any]:
    """``main`` by the package. A prompt adapter alone finds its base in the cache."""
    from e2rank_st import E2Rank

    model, base = E2Rank(job["repo_id"], device="cpu"), job["base"]
    place = {"revision": base["revision"], "device": "cpu"}
    _check_base(model, _load(base["name"], **place) if base["is_stock"] else E2Rank(base["name"], **place), job)
    return rank(model, job)


def _check_base(model: Any, base: Any, job: Job) -> None:
    """Whoever has stored vectors of the base must be able to keep them."""
    ours = _embed(model, job)
    for part, vectors in _embed(base, job).items():
        if vectors != ours[part]:
            raise RuntimeError(f"{part} differs from that of the base {job['base']['name']}")


def _blocks(job: Job) -> dict[str, Any]:
    """Run the blocks of a card, in order and in one namespace, without their output."""
    os.nice(19)  # whoever watches them comes first
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(job["blocks"], 1):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, f"<Python block {number} of the card of {job['card']}>", "exec"), namespace)
    return {}


TASKS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "embedding": _embedding,
    "plain": _plain,
    "remote": _remote,
    "again": _again,
    "package": _package,
    "blocks": _blocks,
    "tokenizer": _tokenizer,
}

if __name__ == "__main__":
    main()
