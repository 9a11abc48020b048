"""A toy model's folder and the results of its evaluation.

The adapter is one of zeros: loaded, the model is the real base.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from e2rank_st.benchmarks.results import Result
from tests.benchmarks.toy_results import BASE, ENVIRONMENT, OWN, mteb, reranking

NAME = OWN.rpartition("/")[2]
CONFIGURATION: dict[str, Any] = {
    "adapter_config.json": {"base_model_name_or_path": BASE, "peft_type": "LORA", "r": 2, "lora_alpha": 4},
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "modeling_e2rank.E2RankPooling"},
        {"idx": 2, "name": "2", "path": "2_ListwiseRerank", "type": "modeling_e2rank.ListwiseRerank"},
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
        "model": {
            "dimension": 384,
            "pooling": "mean",
            "max_tokens": 256,
            "positions": 512,
            "prompts": {"query": "", "document": ""},
        },
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


def write_prompt_adapter(folder: Path, **changes: Any) -> Path:
    """The folder of the same model with its adapter for prompts alone, as training writes it."""
    whole = write_model(folder / "whole", **changes)
    alone, home = folder / NAME, folder / NAME / "2_ListwiseRerank"
    home.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "2_ListwiseRerank/config.json"):
        (whole / name).rename(home / Path(name).name)
    training = json.loads((whole / "training.json").read_text(encoding="utf-8"))
    training["settings"]["prompt_adapter"] = True
    (alone / "training.json").write_text(json.dumps(training), encoding="utf-8")
    return alone


def toy_results() -> list[Result]:
    """All that ``make eval`` measures, in small: listwise helps on BM25 and hurts on SPLADE."""
    levels = {"baseline_embedding": 0.55, "baseline_listwise": 0.52, "embedding": 0.55}
    plain, base = {"NFCorpus": 0.3159, "SciFact": 0.6451}, {"NFCorpus": 0.31, "SciFact": 0.64}
    own = {"NFCorpus": 0.33, "SciFact": 0.66}
    return [
        reranking({"first_stage": 0.44, **levels, "listwise": 0.62}),
        reranking({"first_stage": 0.68, **levels, "listwise": 0.6}, stage="splade"),
        *(mteb(task, "embedding", level, model=BASE) for task, level in plain.items()),
        *(mteb(task, "two-stage", level, model=BASE) for task, level in base.items()),
        *(mteb(task, "embedding", level) for task, level in plain.items()),
        *(mteb(task, "two-stage", level) for task, level in own.items()),
    ]
