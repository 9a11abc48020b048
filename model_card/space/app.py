"""The page of ``e2rank demo --web``, on the docstrings of Python's standard library."""

from e2rank_st import E2Rank
from e2rank_st.cli.demo import open_index, show_page
from e2rank_st.data.docstrings import QUERIES

show_page(open_index(E2Rank("e2rank-st/e2rank-minilm-l6"), None, keep=False), None, QUERIES, top_k=10)
