"""Requests in, answers out: read, format, features, score, answer."""
