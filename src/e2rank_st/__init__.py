"""e2rank-st: one text-embedding model that retrieves and reranks listwise, for Sentence-Transformers."""

from e2rank_st.model import E2Rank

__all__ = ["E2Rank"]
__version__ = "0.1.0"
