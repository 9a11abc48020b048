"""Make tables and figures of results: the command ``e2rank eval report``.

    python eval/report.py eval/results/e2rank-minilm-l6 --figures report

The options: ``--help``.
"""

from e2rank_st.cli.evaluate import report, run_script

if __name__ == "__main__":
    run_script(report)
