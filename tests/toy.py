"""Toy slates: a query and a document belong together if they name the same thing.

A tiny model learns a few slates by heart; to rank others better it takes some hundreds of them.
"""

import random
from typing import Any

THINGS = ["flea", "cat", "dog", "iron", "bread", "river", "moon", "sun", "gravity", "yeast", "water", "fire"]


def toy_rows(number: int, seed: int = 0, source: str = "toy") -> list[dict[str, Any]]:
    """Rows with 4 to 7 documents, the positive first, the last one unjudged; the numbers in texts mean nothing."""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        thing, count = draw.choice(THINGS), draw.randint(3, 6)
        others = [draw.choice([other for other in THINGS if other != thing]) for _ in range(count)]
        rows.append(
            {
                "query": f"what is {thing} {draw.randint(0, 999)}",
                "documents": [f"about {name} number {draw.randint(0, 999)}" for name in (thing, *others)],
                "labels": [2.0, *[0.0] * (count - 1), None],
                "gold": [True, *[False] * count],
                "source": source,
            }
        )
    return rows
