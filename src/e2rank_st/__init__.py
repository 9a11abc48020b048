"""e2rank-st: one text-embedding model that retrieves and reranks listwise, for Sentence-Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2rank_st.loading import load_model
    from e2rank_st.model import E2Rank
    from e2rank_st.search.index import SearchIndex

__all__ = ["E2Rank", "SearchIndex", "load_model"]
__version__ = "0.1.0"

MODULES = {"E2Rank": "model", "load_model": "loading", "SearchIndex": "search.index"}


def __getattr__(name: str) -> Any:
    # On first use: torch and transformers take seconds, which `e2rank --help` need not wait for.
    if name in MODULES:
        return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
