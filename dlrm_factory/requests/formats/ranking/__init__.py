"""Ranking requests: one context and its candidates."""
