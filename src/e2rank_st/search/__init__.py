"""Vectors → the nearest texts, exactly, and the index that keeps both."""
