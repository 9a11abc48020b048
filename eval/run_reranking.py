"""Rerank a first stage's candidates by several systems: the command ``e2rank eval rerank``.

    python eval/run_reranking.py --tasks dl19,dl20 --output-dir results

The options: ``--help``.
"""

from e2rank_st.cli.evaluate import rerank, run_script

if __name__ == "__main__":
    run_script(rerank)
