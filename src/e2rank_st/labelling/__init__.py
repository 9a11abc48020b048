"""Queries and a corpus → slates: mined candidates, and a teacher's labels."""
