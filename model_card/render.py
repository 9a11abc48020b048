"""See :mod:`e2rank_st.publishing.card.render`; ``--help`` tells the options."""

import sys

from e2rank_st.publishing.card.render import main

if __name__ == "__main__":
    sys.exit(main())
