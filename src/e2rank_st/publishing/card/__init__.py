"""A model's facts and results → its card."""
