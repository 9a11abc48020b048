"""See :mod:`e2rank_st.benchmarks.submission`; ``--help`` tells the options."""

import sys

from e2rank_st.benchmarks.submission import main

if __name__ == "__main__":
    sys.exit(main())
