"""Queries and a corpus → slates with mined candidates and a teacher's labels."""
