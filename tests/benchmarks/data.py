"""Toy test sets on disk, in the forms that the evaluation scripts read."""

import json
from pathlib import Path
from typing import Any

from tests.toy import toy_rows


def write_task(folder: Path, number: int = 6, name: str = "dl21", stage: str = "bm25", seed: int = 1) -> Path:
    """A folder with first-stage results and judgements of a task; the first stage is blind, and every query judged."""
    target = folder / "rerank"
    target.mkdir(parents=True, exist_ok=True)
    rows = toy_rows(number, seed=seed)
    with (target / f"{name}_{stage}_top100.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"query": row["query"], "hits": hits(row, query)}) + "\n" for query, row in enumerate(rows)
        )
    judged = [
        f"q{query} 0 d{query}-{place} {label:.0f}\n"
        for query, row in enumerate(rows)
        for place, label in enumerate(row["labels"])
        if label is not None
    ]
    (target / f"{name}_qrels.txt").write_text("".join(judged), encoding="utf-8")
    return folder


def hits(row: dict[str, Any], query: int) -> list[dict[str, Any]]:
    """The documents of a slate, the positive in the middle, as a first stage's hits."""
    places = list(range(1, len(row["documents"])))
    places.insert(len(places) // 2, 0)
    return [
        {
            "content": row["documents"][place],
            "qid": f"q{query}",
            "docid": f"d{query}-{place}",
            "rank": rank,
            "score": 20.0 - rank,
        }
        for rank, place in enumerate(places, 1)
    ]


def write_beir(folder: Path, number: int = 5, seed: int = 2) -> Path:
    """A folder in BEIR's layout."""
    (folder / "qrels").mkdir(parents=True)
    rows = toy_rows(number, seed=seed)
    corpus = [(f"d{q}-{p}", text) for q, row in enumerate(rows) for p, text in enumerate(row["documents"])]
    lines = {
        "corpus.jsonl": [json.dumps({"_id": id_, "title": "", "text": text}) for id_, text in corpus],
        "queries.jsonl": [json.dumps({"_id": f"q{query}", "text": row["query"]}) for query, row in enumerate(rows)],
        "qrels/test.tsv": ["query-id\tcorpus-id\tscore", *(f"q{query}\td{query}-0\t1" for query in range(number))],
    }
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n", encoding="utf-8")
    return folder
