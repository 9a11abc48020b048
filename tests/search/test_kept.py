"""Vectors that are kept on disk: right ones, embedded once, of one model only."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.modeling_e2rank import E2RankPooling
from e2rank_st.search.kept import kept_vectors


def test_embedded_once(tiny: E2Rank, facts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against vectors of another text, and against texts that are embedded again for their order."""
    found = kept_vectors(tiny, [*facts, facts[0]], tmp_path)
    assert sorted(found.texts) == sorted(set(facts))
    np.testing.assert_allclose(found.vectors(facts), tiny.encode_document(facts), atol=1e-6, rtol=0)
    queries = kept_vectors(tiny, facts, tmp_path, "query").vectors(facts)
    np.testing.assert_allclose(queries, tiny.encode_query(facts), atol=1e-6, rtol=0)
    monkeypatch.setattr(E2Rank, "encode", lambda *_, **__: pytest.fail("embedded again"))
    again = kept_vectors(tiny, facts[::-1], tmp_path, batch_size=2, show_progress_bar=False)
    np.testing.assert_array_equal(again.vectors(facts), found.vectors(facts))


@pytest.mark.parametrize(
    ("change", "kind", "number"),
    [
        (lambda model: setattr(model, "max_seq_length", 5), "documents", 2),
        (lambda model: model.__setitem__(1, E2RankPooling(32, "mean")), "documents", 2),
        (lambda model: model.prompts.update(query="ask: "), "query", 2),
        (lambda model: model.prompts.update(query="ask: "), "documents", 1),
        (lambda model: model.replace_listwise(query_weight=0.9), "documents", 1),
    ],
)
def test_vectors_belong_to_a_model(
    tiny: E2Rank, facts: list[str], tmp_path: Path, change: Callable[[E2Rank], object], kind: str, number: int
):
    """Guards against vectors of a model that embeds differently, and against two sets of equal ones."""
    kept_vectors(tiny, facts, tmp_path, kind)
    other = copy.deepcopy(tiny)
    change(other)
    kept_vectors(other, facts, tmp_path, kind)
    assert len(list(tmp_path.iterdir())) == number
