"""Rankings and judgements → metrics, and tests whether a difference is more than chance."""
