"""LanceDB: rows of a query by vector, text or both are reranked as model.rerank does it, with the table's vectors."""

from pathlib import Path

import pytest

from e2rank_st import E2Rank

lancedb = pytest.importorskip("lancedb")

from lancedb.index import FTS  # noqa: E402

from e2rank_st.integrations.lancedb import E2RankReranker  # noqa: E402

QUERY = "how long do fleas live"


@pytest.fixture(scope="module")
def table(tiny: E2Rank, facts: list[str], tmp_path_factory: pytest.TempPathFactory):
    """Facts with the model's vectors."""
    vectors = tiny.encode_document(facts)
    titles = ["Fleas", None, *["Facts"] * 8]
    rows = [
        {"place": place, "title": title, "text": text, "vector": vector}
        for place, (title, text, vector) in enumerate(zip(titles, facts, vectors, strict=True))
    ]
    table = lancedb.connect(tmp_path_factory.mktemp("lance")).create_table("facts", rows)
    table.create_index("text", config=FTS())
    return table


def by_vector(table, tiny: E2Rank, reranker: E2RankReranker):
    return table.search(tiny.encode_query([QUERY])[0]).limit(10).rerank(reranker, query_string=QUERY)


def by_both(table, tiny: E2Rank, reranker: E2RankReranker, limit: int = 10):
    query = table.search(query_type="hybrid").vector(tiny.encode_query([QUERY])[0]).text("fleas")
    return query.limit(limit).rerank(reranker)


def test_rows_by_vector(table, tiny, facts, passes):
    """Guards against a different order or score, lost columns, and documents that are embedded again."""
    expected = tiny.rerank(QUERY, facts, document_embeddings=tiny.encode_document(facts), candidate_order="similarity")
    reranker = E2RankReranker(tiny)
    query = by_vector(table, tiny, reranker)
    passes.clear()
    found = query.to_arrow()
    assert passes == [1], "the prompt alone; the candidates come in the order of the search, nearest first"
    assert found["place"].to_pylist() == [hit["corpus_id"] for hit in expected]
    assert found["_relevance_score"].to_pylist() == pytest.approx([hit["score"] for hit in expected], abs=1e-6)
    assert found.column_names == ["place", "title", "text", "vector", "_relevance_score"]


def test_rows_by_text(table, tiny, facts, passes):
    """Guards against a text search whose rows are embedded, and against rows that it did not find."""
    found = table.search("fleas", query_type="fts").limit(10).rerank(E2RankReranker(tiny)).to_arrow()
    assert passes == [1]
    plain = table.search("fleas", query_type="fts").limit(10).to_list()
    expected = tiny.rerank(
        "fleas", [row["text"] for row in plain], document_embeddings=[row["vector"] for row in plain]
    )
    assert found["place"].to_pylist() == [plain[hit["corpus_id"]]["place"] for hit in expected]
    assert 0 < len(found) < 10, "the premise"


def test_rows_by_both(table, tiny, facts, passes):
    """Guards against a row that comes twice because both searches found it, and rows that one of them lacks."""
    query = by_both(table, tiny, E2RankReranker(tiny, options={"num_prompt_documents": 3}))
    passes.clear()
    found = query.to_arrow()
    assert passes == [1]
    assert sorted(found["place"].to_pylist()) == list(range(10))
    scores = found["_relevance_score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert "_distance" not in found.column_names and "_score" not in found.column_names
    fused = by_both(table, tiny, lancedb.rerankers.RRFReranker()).to_arrow()
    order = fused["place"].to_pylist()
    texts = [facts[place] for place in order]
    best = fused["_relevance_score"].to_pylist()
    assert best[2] > best[3], "the premise: the first three are clear"
    expected = tiny.rerank("fleas", texts, num_prompt_documents=3)
    assert found["place"].to_pylist() == [order[hit["corpus_id"]] for hit in expected]


def test_all_scores(table, tiny):
    """Guards against scores of the search that are lost, or that belong to different rows."""
    found = by_both(table, tiny, E2RankReranker(tiny, return_score="all")).to_list()
    texts = {row["place"]: row["_score"] for row in table.search("fleas", query_type="fts").limit(10).to_list()}
    assert {row["place"]: row["_score"] for row in found if row["_score"] is not None} == texts
    assert all(row["_distance"] is not None for row in found)
    found = by_vector(table, tiny, E2RankReranker(tiny, return_score="all")).to_arrow()
    assert found.column_names[-3:] == ["_distance", "_rowid", "_relevance_score"]


def test_scores_of_the_search(table, tiny, facts):
    """Guards against a distance that counts as a score: the nearest row would come last."""
    reranker = E2RankReranker(tiny, options={"first_stage_weight": 1.0})
    plain = table.search(tiny.encode_query([QUERY])[0]).limit(10).to_list()
    found = by_vector(table, tiny, reranker).to_list()
    assert [row["place"] for row in found] == [row["place"] for row in plain]
    found = table.search("fleas", query_type="fts").limit(10).rerank(reranker).to_list()
    plain = table.search("fleas", query_type="fts").limit(10).to_list()
    assert [row["place"] for row in found] == [row["place"] for row in plain]
    fused = by_both(table, tiny, lancedb.rerankers.RRFReranker()).to_list()
    assert [row["place"] for row in by_both(table, tiny, reranker).to_list()] == [row["place"] for row in fused]


def test_rows_without_vectors_are_embedded(table, tiny, facts, passes, tmp_path: Path):
    """Guards against an error where a query leaves out the vectors, and against vectors of a different model."""
    query = by_vector(table, tiny, E2RankReranker(tiny)).select(["place", "text"])
    expected = by_vector(table, tiny, E2RankReranker(tiny)).to_arrow()["place"].to_pylist()
    passes.clear()
    assert query.to_arrow()["place"].to_pylist() == expected
    assert passes == [10, 1]
    query = by_vector(table, tiny, E2RankReranker(tiny, vector_column=None))
    passes.clear()
    assert query.to_arrow()["place"].to_pylist() == expected
    assert passes == [10, 1]
    rows = [{**row, "other": row["vector"] if row["place"] > 2 else None} for row in table.to_arrow().to_pylist()]
    partly = lancedb.connect(tmp_path).create_table("partly", rows)
    reranker = E2RankReranker(tiny, vector_column="other")
    query = partly.search(tiny.encode_query([QUERY])[0], vector_column_name="vector").limit(10)
    passes.clear()
    assert query.rerank(reranker, query_string=QUERY).to_arrow()["place"].to_pylist() == expected
    assert passes == [3, 1]


def test_titles(table, tiny, facts):
    """Guards against a title that does not reach the model."""
    found = by_vector(table, tiny, E2RankReranker(tiny, title_column="title", vector_column=None)).to_list()
    plain = table.search(tiny.encode_query([QUERY])[0]).limit(10).to_list()
    expected = tiny.rerank(QUERY, [{"title": row["title"], "text": row["text"]} for row in plain])
    assert [row["place"] for row in found] == [plain[hit["corpus_id"]]["place"] for hit in expected]


def test_edges(table, tiny):
    """Guards against an error where nothing was found, and against a column that is missing."""
    found = table.search("unheard", query_type="fts").limit(10).rerank(E2RankReranker(tiny)).to_arrow()
    assert len(found) == 0 and "_relevance_score" in found.column_names
    query = table.search(query_type="hybrid").vector(tiny.encode_query([QUERY])[0]).text("unheard").limit(3)
    assert len(query.rerank(E2RankReranker(tiny)).to_list()) == 3
    for nothing in (query, table.search("unheard", query_type="fts")):
        assert nothing.where("place > 99").rerank(E2RankReranker(tiny)).to_list() == []
    with pytest.raises(ValueError, match=r"lack the column 'body'; they have .*'text'"):
        by_vector(table, tiny, E2RankReranker(tiny, column="body")).to_list()
    with pytest.raises(ValueError, match="score must be"):
        E2RankReranker(tiny, return_score="none")
