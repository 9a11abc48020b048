"""Rankings and judgements → metrics, and whether a difference is more than chance."""
