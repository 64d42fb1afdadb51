"""Comparison of the server with others, in one go: ``.venv/bin/python scripts/compare``."""
