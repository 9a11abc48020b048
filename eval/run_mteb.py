"""Measure a model on tasks of MTEB: the command ``e2rank eval mteb``.

    python eval/run_mteb.py --model bundled --benchmark NanoBEIR --output-dir results

The options: ``--help``.
"""

from e2rank_st.cli.evaluate import mteb, run_script

if __name__ == "__main__":
    run_script(mteb)
