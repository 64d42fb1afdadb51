"""Checkpoint → staged folder → self-contained archive; its listing, and its verification without a server."""
