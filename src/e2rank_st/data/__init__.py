"""Files → slates, documents, judgements and runs: what is trained on, searched and judged."""
