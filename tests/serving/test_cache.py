"""Known vectors: found by their token ids, and no more of them than fit."""

import tracemalloc

import pytest
import torch

from e2rank_st.serving.cache import ENTRY, VectorCache


def vectors(rows, dimension: int = 4) -> dict:
    return {tuple(ids): torch.arange(dimension, dtype=torch.float32) + ids[0] for ids in rows}


def test_found_again_bit_for_bit():
    """Guards against other vectors, and against those of a prompt of a different length."""
    cache, made = VectorCache(10_000, 4), vectors([(1, 2), (3,)])
    cache.keep(made, None)
    found = cache.find([(1, 2), (3,), (2, 1)], None)
    assert found.keys() == made.keys()
    assert all(torch.equal(found[ids], made[ids]) for ids in made)
    found[1, 2].zero_()
    assert torch.equal(cache.find([(1, 2)], None)[1, 2], made[1, 2]), "a caller that changes its own copy"
    assert not cache.find([(1, 2)], 0)
    assert not cache.find([(1, 2)], 1)


def test_the_oldest_goes():
    """Guards against a cache that drops what is in use."""
    cache = VectorCache(2 * (4 * 4 + ENTRY), 4)
    cache.keep(vectors([(1,), (2,)]), None)
    assert cache.find([(1,)], None)
    cache.keep(vectors([(3,)]), None)
    assert [ids for ids in [(1,), (2,), (3,)] if cache.find([ids], None)] == [(1,), (3,)]


@pytest.mark.parametrize("size", [0, 10])
def test_none_is_kept(size: int):
    """Guards against an error where nothing fits."""
    cache = VectorCache(size, 4)
    cache.keep(vectors([(1,)]), None)
    assert not cache.find([(1,)], None) and not len(cache)


@pytest.mark.parametrize(("dimension", "tokens"), [(32, 8), (384, 512), (1024, 4096)])
def test_memory_is_that_of_the_setting(dimension: int, tokens: int):
    """Guards against a bound that forgets the keys: those of long texts were larger than the vectors."""
    size = 2_000_000
    cache = VectorCache(size, dimension)
    batch = torch.ones(64, dimension)  # a row that is not copied would keep all of it
    rest = tuple(range(1_000_000, 1_000_000 + tokens - 1))
    tracemalloc.start()
    for row in range(1200):
        cache.keep({(row, *rest): (batch + row)[row % 64]}, None)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    share = min(1, 1200 / cache._vectors.maxsize)
    assert 0.5 * size * share < used < 1.05 * size * share
