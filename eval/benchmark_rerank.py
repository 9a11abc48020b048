"""See :mod:`e2rank_st.benchmarks.speed`; ``--help`` tells the options."""

from e2rank_st.benchmarks.speed import main

if __name__ == "__main__":
    main()
