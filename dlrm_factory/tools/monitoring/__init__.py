"""Metrics of a running server's workers: read, added up, compared with training, exported and shown."""
