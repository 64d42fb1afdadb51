"""Weights of a model: checkpoint, seal, table file, and their way into a sharded model."""
