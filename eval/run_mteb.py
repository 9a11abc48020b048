"""See :mod:`e2rank_st.benchmarks.mteb_run`; ``--help`` tells the options."""

import sys

from e2rank_st.benchmarks.mteb_run import main

if __name__ == "__main__":
    sys.exit(main())
