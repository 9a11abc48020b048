"""``python -m e2rank_st.cli``: the command ``e2rank``, for launchers of modules such as torchrun."""

from e2rank_st.cli.app import app

if __name__ == "__main__":
    app(prog_name="e2rank")
