"""Other libraries that use the package; each stands behind an extra of its own."""
