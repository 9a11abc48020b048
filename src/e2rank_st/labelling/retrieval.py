"""A model and a judged corpus → the model's own first-stage results, as files for training and evaluation."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from e2rank_st.data.beir import JudgedCorpus
from e2rank_st.search.texts import TextVectors
from e2rank_st.storage import replacing

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["write_first_stage"]

logger = logging.getLogger(__name__)


def write_first_stage(path: Path, model: SentenceTransformer, collection: JudgedCorpus, depth: int = 100) -> None:
    """Write the candidates that a model retrieves for the judged queries, and the judgements beside them.

    Args:
        path: File of the results, JSON lines; the file of judgements gets the ending ``.qrels``.
        model: The model.
        collection: Corpus, queries and judgements.
        depth: Number of candidates of each query.

    Raises:
        OSError: A file cannot be written.
    """
    index = TextVectors.build(model, list(collection.corpus.values()), show_progress_bar=True)
    ids, queries = list(collection.corpus), list(collection.judgements)
    vectors = model.encode_query([collection.queries[query] for query in queries])
    scores, rows = index.retrieve(vectors, depth)
    with replacing(path.with_suffix(".qrels")) as judged, replacing(path) as fresh:
        with fresh.open("w", encoding="utf-8") as file:
            for query, places, values in zip(queries, rows.tolist(), scores.tolist(), strict=True):
                hits = [
                    {"content": index.texts[row], "qid": query, "docid": ids[row], "rank": rank, "score": score}
                    for rank, (row, score) in enumerate(zip(places, values, strict=True), 1)
                ]
                file.write(json.dumps({"query": collection.queries[query], "hits": hits}) + "\n")
        grades = ((query, id_, grade) for query in queries for id_, grade in collection.judgements[query].items())
        judged.write_text("".join(f"{query} 0 {id_} {grade:g}\n" for query, id_, grade in grades), encoding="utf-8")
    logger.info("%s: %d queries", path.name, len(queries))
