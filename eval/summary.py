"""See :mod:`e2rank_st.benchmarks.summary`; ``--help`` tells the options."""

import sys

from e2rank_st.benchmarks.summary import main

if __name__ == "__main__":
    sys.exit(main())
