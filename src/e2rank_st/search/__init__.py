"""Vectors → the nearest texts by exact search, and an index that stores texts and vectors."""
