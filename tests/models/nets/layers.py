"""Layers that DIN imports from a file of their own."""

from torch import nn


def tower(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
