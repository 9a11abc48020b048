"""Tell what listwise reranking gains, for each model and task: the command ``e2rank eval table``.

    python eval/summary.py eval/results/* --readme README.md --docs docs/evaluation.md

The options: ``--help``.
"""

from e2rank_st.cli.evaluate import run_script, table

if __name__ == "__main__":
    run_script(table)
