"""Toy results, as the runners write them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from e2rank_st.benchmarks.results import Result, SystemResult

OWN, BASE = "e2rank-st/e2rank-toy", "sentence-transformers/all-MiniLM-L6-v2"
REVISION, BASE_REVISION = "weights-0123456789ab", "weights-ba9876543210"
QUERIES = [f"q{number}" for number in range(6)]
VERSIONS = {"python": "3.11.0", "torch": "2.13.0"}
ENVIRONMENT = {"versions": VERSIONS, "hardware": {"device": "a toy processor", "threads": 2}}


def described(name: str, revision: str | None = None) -> dict[str, Any]:
    """What a result says of a model."""
    return {"name": name, "revision": revision or (BASE_REVISION if name == BASE else REVISION)}


def reranking(
    levels: dict[str, float],
    *,
    task: str = "dl21",
    stage: str = "bm25",
    compare_with: str = "baseline_embedding",
    model: str = OWN,
    **changes: Any,
) -> Result:
    """A result of reranking, of systems with a mean nDCG@10; ``listwise_k3`` has three documents in the prompt."""
    systems = {}
    for name, level in levels.items():
        kind, _, count = name.removeprefix("baseline_").partition("_k")
        timed = None if kind == "first_stage" else {"median": 100 * level, "p95": 120 * level, "queries": 6}
        gain = level - levels[compare_with]
        test = {"difference": gain, "interval": [gain, gain], "p": 0.03125, "wins": 6, "ties": 0, "losses": 0}
        systems[name] = SystemResult(
            kind=kind,
            model="" if kind == "first_stage" else "baseline" if name.startswith("baseline_") else "model",
            parameters={"num_prompt_documents": int(count)} if count else {},
            scores={"ndcg@10": level, "map": level / 2},
            per_query={query: level + 0.02 * (place - 2.5) for place, query in enumerate(QUERIES)},
            interval=[level - 0.04, level + 0.04],
            latency={"stored": timed, "fresh": timed and {**timed, "median": 2000 * level}},
            tokens=timed and {"median": 300.0, "p95": 320.0, "queries": 6},
            comparison={"against": compare_with, **test} if name != compare_with else None,
        )
    result = Result(
        benchmark="reranking",
        task=task,
        title=task.upper(),
        first_stage=stage,
        main_metric="ndcg@10",
        models={"model": described(model), "baseline": described(BASE)},
        sources={},
        systems=systems,
        environment=ENVIRONMENT,
        local=True,
        queries=6,
    )
    return replace(result, **changes)


def mteb(task: str, mode: str, level: float, *, model: str = OWN, searched: bool = True, **changes: Any) -> Result:
    """A result of MTEB; there are scores by query if the task searches."""
    metric = "ndcg@10" if searched else "cosine_spearman"
    system = SystemResult(
        kind="embedding" if mode == "embedding" else "listwise",
        model="model",
        parameters={},
        scores={metric: level, **({"map@10": level / 2} if searched else {})},
        per_query={query: level + 0.01 * place for place, query in enumerate(QUERIES)} if searched else {},
    )
    result = Result(
        benchmark="mteb",
        task=task,
        title=task,
        main_metric=metric,
        models={"model": described(model)},
        sources={},
        systems={mode: system},
        environment=ENVIRONMENT,
        local=True,
        queries=6 if searched else 0,
    )
    return replace(result, **changes)


def official(task: str, mode: str, level: float, revision: str, **changes: Any) -> Result:
    """A result of MTEB on the data of the Hub."""
    scores = {"test": [{"hf_subset": "default", "main_score": level, "ndcg_at_10": level, "languages": ["eng-Latn"]}]}
    result = {
        "dataset_revision": revision,
        "task_name": task,
        "mteb_version": "2.26.24",
        "evaluation_time": 1.0,
        "scores": scores,
    }
    return mteb(task, mode, level, local=False, mteb={"result": result}, **changes)


def of_another(result: Result, revision: str) -> Result:
    """The same result of another state of its model."""
    (role, model), *others = result.models.items()
    return replace(result, models={role: model | {"revision": revision}, **dict(others)})


def write_results(folder: Path, *results: Result) -> Path:
    """A folder of results; files that are there already stay."""
    for result in results:
        result.write(folder / f"{len(list(folder.glob('*.json'))):02}.json")
    return folder
