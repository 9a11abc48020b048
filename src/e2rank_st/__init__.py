"""e2rank-st: one text-embedding model that retrieves and reranks listwise, for Sentence-Transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2rank_st.model import E2Rank

__all__ = ["E2Rank"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On first use: torch and transformers take seconds, which `e2rank --help` need not wait for.
    if name == "E2Rank":
        from e2rank_st.model import E2Rank

        return E2Rank
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
