"""The command ``e2rank``."""
