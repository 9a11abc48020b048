"""Files → slates to train on, documents to search, and judgements and runs to evaluate."""
