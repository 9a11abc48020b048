"""Slates → a trained model."""
