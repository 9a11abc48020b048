"""A model, and perhaps an index, behind a URL."""
