"""Toy collections on disk, in BEIR's layout as parquet: what MTEB's tasks read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.toy import toy_rows

CARD = """---
configs:
  - config_name: corpus
    data_files: [{split: corpus, path: corpus.parquet}]
  - config_name: queries
    data_files: [{split: queries, path: queries.parquet}]
  - config_name: default
    data_files: [{split: test, path: qrels_test.parquet}]
---
"""


def write_collection(folder: Path, number: int = 6, seed: int = 0) -> Path:
    """Queries with their judged documents; relevant documents come first, as they often do."""
    folder.mkdir(parents=True)
    rows = toy_rows(number, seed=seed)
    texts = [list(enumerate(row["documents"])) for row in rows]
    documents = [(f"q{query}-{place}", text) for query, placed in enumerate(texts) for place, text in placed]
    documents.sort(key=lambda document: not document[0].endswith("-0"))
    tables = {
        "corpus": [{"_id": id_, "title": "", "text": text} for id_, text in documents],
        "queries": [{"_id": f"q{query}", "text": row["query"]} for query, row in enumerate(rows)],
        "qrels_test": [{"query-id": f"q{query}", "corpus-id": f"q{query}-0", "score": 1} for query in range(number)],
    }
    for name, table in tables.items():
        pq.write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder
