"""A toy model's folder and toy results, as training and evaluation write them.

The adapter is one of zeros: loaded, the model is the real base.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

NAME = "e2rank-toy"
OWN, BASE = f"e2rank-st/{NAME}", "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "weights-0123456789ab"
QUERIES = [f"q{number}" for number in range(6)]
VERSIONS = {"python": "3.11.0", "torch": "2.13.0"}
ENVIRONMENT = {"versions": VERSIONS, "hardware": {"device": "a toy processor", "threads": 2}}
CONFIGURATION: dict[str, Any] = {
    "adapter_config.json": {"base_model_name_or_path": BASE, "peft_type": "LORA", "r": 2, "lora_alpha": 4},
    "modules.json": [
        {"idx": 0, "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "modeling_e2rank.E2RankPooling"},
        {"idx": 2, "path": "2_ListwiseRerank", "type": "modeling_e2rank.ListwiseRerank"},
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 384,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    },
    "2_ListwiseRerank/config.json": {
        "prompt_format": "encoder",
        "instruction": "rerank",
        "num_prompt_documents": 5,
        "max_prompt_tokens": 384,
        "max_query_tokens": 128,
        "candidate_order": "similarity",
        "query_weight": 0.3,
    },
    "tokenizer_config.json": {"model_max_length": 256},
    "config_sentence_transformers.json": {"prompts": {"query": "", "document": ""}},
    "training.json": {
        "settings": {"per_device_train_batch_size": 16},
        "loss": {"contrastive_weight": 0.0, "listwise_weight": 2.0, "guard_weight": 20.0, "freeze_documents": True},
        "data": {
            "train": [
                {
                    "path": "build/slates/squad.parquet",
                    "slates": 4500,
                    "documents": 274500,
                    "manifest": {"settings": {"teacher": {"model": "sentence-transformers/all-mpnet-base-v2"}}},
                },
                {"path": "build/slates/dl22.parquet", "slates": 1824, "documents": 145920},
            ],
            "dev": [
                {"path": "rerank/dl21_bm25_top100.jsonl.gz", "name": "dl21", "slates": 53, "documents": 5300},
                {"path": "build/slates/nfcorpus_dev.jsonl", "name": "nfcorpus_dev", "slates": 100, "documents": 10000},
            ],
        },
        "before": {
            "dl21_first_stage_ndcg@10": 0.4458,
            "dl21_embedding_ndcg@10": 0.5785,
            "dl21_listwise_ndcg@10": 0.59,
            "sequential_score": 0.59,
        },
        "after": {
            "dl21_first_stage_ndcg@10": 0.4458,
            "dl21_embedding_ndcg@10": 0.5785,
            "dl21_listwise_ndcg@10": 0.61,
            "sequential_score": 0.61,
        },
        "p_values": {"dl21_first_stage_ndcg@10": 1.0, "dl21_embedding_ndcg@10": 1.0, "dl21_listwise_ndcg@10": 0.0312},
        "best_step": 400,
        "steps": 600,
        "environment": ENVIRONMENT,
    },
}


def write_model(folder: Path, **changes: Any) -> Path:
    """A model's folder; the changes are to its ``training.json``."""
    folder = folder / NAME
    for name, content in CONFIGURATION.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = content | changes if name == "training.json" else content
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    layer = "base_model.model.encoder.layer.0.attention.self.query"
    save_file(
        {f"{layer}.lora_A.weight": torch.zeros(2, 384), f"{layer}.lora_B.weight": torch.zeros(384, 2)},
        folder / "adapter_model.safetensors",
    )
    return folder


def reranking(stage: str, levels: dict[str, float], **changes: Any) -> dict[str, Any]:
    """A result of run_reranking.py, with a baseline."""
    systems = {}
    for name, level in levels.items():
        kind = name.removeprefix("baseline_")
        timed = None if kind == "first_stage" else {"median": 100 * level, "p95": 120 * level, "queries": 6}
        per_query = {query: level + 0.02 * (place - 2.5) for place, query in enumerate(QUERIES)}
        systems[name] = {
            "settings": {"kind": kind},
            "scores": {"ndcg@10": level, "map": level / 2},
            "interval": [level - 0.04, level + 0.04],
            "latency": {"stored": timed, "fresh": timed and {**timed, "median": 2000 * level}},
            "tokens": timed and {"median": 300.0, "p95": 320.0, "queries": 6},
            "per_query": {"ndcg@10": per_query},
        }
        if name != "baseline_embedding":
            gain = level - levels["baseline_embedding"]
            test = {"difference": gain, "interval": [gain, gain], "p": 0.03125, "wins": 6, "ties": 0, "losses": 0}
            systems[name]["comparison"] = {"against": "baseline_embedding", **test}
    return {
        "benchmark": "reranking",
        "task": "dl21",
        "title": "DL21",
        "first_stage": stage,
        "local": True,
        "partial": False,
        "queries": 6,
        "main_metric": "ndcg@10",
        "models": {
            "model": {"name": OWN, "revision": REVISION},
            "baseline": {"name": BASE, "revision": "weights-ba9876543210"},
        },
        "systems": systems,
        "environment": ENVIRONMENT,
        **changes,
    }


def mteb(task: str, mode: str, level: float, *, model: str = OWN, **changes: Any) -> dict[str, Any]:
    """A result of run_mteb.py."""
    return {
        "benchmark": "mteb",
        "task": task,
        "mode": mode,
        "local": True,
        "partial": False,
        "model": {"name": model, "revision": REVISION if model == OWN else "weights-ba9876543210"},
        "main_metric": "ndcg_at_10",
        "main_score": level,
        "scores": {"ndcg_at_10": level},
        "per_query": {"ndcg@10": {query: level + 0.01 * place for place, query in enumerate(QUERIES)}},
        "hardware": "a toy processor, 2 threads",
        "versions": VERSIONS,
        **changes,
    }


def official(task: str, mode: str, level: float, revision: str, **changes: Any) -> dict[str, Any]:
    """A result of run_mteb.py on the data of the Hub."""
    scores = {"test": [{"hf_subset": "default", "main_score": level, "ndcg_at_10": level, "languages": ["eng-Latn"]}]}
    result = {
        "dataset_revision": revision,
        "task_name": task,
        "mteb_version": "2.26.24",
        "evaluation_time": 1.0,
        "scores": scores,
    }
    return mteb(task, mode, level, local=False, result=result, **changes)


def write_results(folder: Path, *records: dict[str, Any]) -> Path:
    """A folder of results."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(records):
        (folder / f"{number}.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def toy_results() -> list[dict[str, Any]]:
    """All that ``make eval`` measures, in small: listwise helps on BM25 and hurts on SPLADE."""
    levels = {"baseline_embedding": 0.55, "baseline_listwise": 0.52, "embedding": 0.55}
    return [
        reranking("bm25", {"first_stage": 0.44, **levels, "listwise": 0.62}),
        reranking("splade", {"first_stage": 0.68, **levels, "listwise": 0.6}),
        *(mteb(task, "embedding", level, model=BASE) for task, level in (("NFCorpus", 0.3159), ("SciFact", 0.6451))),
        *(mteb(task, "two-stage", level, model=BASE) for task, level in (("NFCorpus", 0.31), ("SciFact", 0.64))),
        *(mteb(task, "embedding", level) for task, level in (("NFCorpus", 0.3159), ("SciFact", 0.6451))),
        *(mteb(task, "two-stage", level) for task, level in (("NFCorpus", 0.33), ("SciFact", 0.66))),
    ]
