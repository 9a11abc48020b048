r"""Build a submission to MTEB's leaderboard: the command ``e2rank eval submit``.

    python eval/submission.py results --model models/mine --name org/mine --revision COMMIT \
        --release-date 2026-01-31 --benchmark NanoBEIR

The options: ``--help``.
"""

from e2rank_st.cli.evaluate import run_script, submit

if __name__ == "__main__":
    run_script(submit)
