"""Handlers to compare with. Copied into archives, never imported here."""
