"""Workers of Ray: they make the index that one process makes, also when one of them dies in the middle."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.search.index import Changes

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a minute: each worker is a new process


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def dying(checkpoint: str, folder: str) -> E2Rank:
    """A model that kills its worker at a certain text, once."""
    model = E2Rank(checkpoint, device="cpu")
    encode, mark = model.encode_document, Path(folder, "died")

    def encode_or_die(texts: list[str], **options: object) -> object:
        if any("fact 77 " in text for text in texts) and not mark.exists():
            mark.write_text("once")
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(texts, **options)

    model.encode_document = encode_or_die
    return model


def test_workers_make_the_index_of_one_process(cluster, checkpoint: Path, tiny: E2Rank, tmp_path: Path):
    """Guards against documents that are lost or doubled between workers, and vectors of another model."""
    from e2rank_st.integrations.ray import add_with_ray

    rows = [{"id": f"d{row}", "text": f"fact {row} about fleas", "year": row} for row in range(200)]
    (tmp_path / "files").mkdir()
    for part in range(4):
        lines = "".join(json.dumps(row) + "\n" for row in rows[part::4])
        (tmp_path / "files" / f"{part}.jsonl").write_text(lines)
    alone = SearchIndex.create(tmp_path / "alone", tiny, rows)
    together = SearchIndex.create(tmp_path / "together", tiny)
    load = partial(dying, str(checkpoint), str(tmp_path))
    options = {"workers": 2, "documents_per_write": 20}
    changes = add_with_ray(str(tmp_path / "together"), load, tmp_path / "files", **options)
    assert (tmp_path / "died").exists()
    assert changes == Changes(200)
    assert add_with_ray(str(tmp_path / "together"), load, tmp_path / "files", **options) == Changes(unchanged=200)
    ids = [row["id"] for row in rows]
    stored, expected = together.store.get(ids), alone.store.get(ids)
    assert len(together) == 200
    assert [stored[id_].record for id_ in ids] == [expected[id_].record for id_ in ids]
    for id_ in ids:
        np.testing.assert_allclose((stored[id_].vectors * expected[id_].vectors).sum(), 1, atol=1e-3)
    found, hits = together.search("fact 12", 5), alone.search("fact 12", 5)
    assert [hit["id"] for hit in found] == [hit["id"] for hit in hits]


def test_documents_of_a_lance_data_set(cluster, checkpoint: Path, tiny: E2Rank, tmp_path: Path):
    """Guards against a source that is promised and cannot be read."""
    lance = pytest.importorskip("lance", reason="needs pylance")
    from e2rank_st.integrations.ray import add_with_ray

    rows = [{"id": f"d{row}", "text": f"fact {row} about fleas", "year": row} for row in range(30)]
    lance.write_dataset(pa.Table.from_pylist(rows), tmp_path / "facts.lance")
    index = SearchIndex.create(tmp_path / "index", tiny)
    load = partial(E2Rank, str(checkpoint), device="cpu")
    assert add_with_ray(str(tmp_path / "index"), load, tmp_path / "facts.lance", workers=1) == Changes(30)
    ids = [row["id"] for row in rows]
    assert [record.as_dict() for record in index.get(ids).values()] == [{**row, "title": ""} for row in rows]
