"""See :mod:`e2rank_st.benchmarks.reranking`; ``--help`` tells the options."""

import sys

from e2rank_st.benchmarks.reranking import main

if __name__ == "__main__":
    sys.exit(main())
