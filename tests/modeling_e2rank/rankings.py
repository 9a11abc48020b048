"""What tests say about rankings."""

QUERY = "how long do fleas live"


def scores(ranking: list[dict]) -> dict[int, float]:
    return {hit["corpus_id"]: hit["score"] for hit in ranking}


def assert_same(one: list[dict], other: list[dict], tolerance: float = 1e-5) -> None:
    """Same scores for the same documents, within rounding."""
    one, other = scores(one), scores(other)
    assert one.keys() == other.keys()
    assert max(abs(one[index] - other[index]) for index in one) <= tolerance
