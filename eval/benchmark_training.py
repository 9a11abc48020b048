"""See :mod:`e2rank_st.benchmarks.training_speed`; ``--help`` tells the options."""

from e2rank_st.benchmarks.training_speed import main

if __name__ == "__main__":
    main()
