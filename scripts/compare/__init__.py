"""The server against others, in one go: ``python -m compare``."""
