"""Mean and standard deviation of a column that comes in chunks."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["Moments"]


class Moments:
    """Chan's parallel form of Welford's sums: as exact as two passes over all values."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Take float32 [n]; sums are float64."""
        if not len(values):
            return
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        together = self._count + len(wide)
        distance = mean - self._mean
        self._squares += float(((wide - mean) ** 2).sum())
        self._squares += distance * distance * self._count * len(wide) / together
        self._mean += distance * len(wide) / together
        self._count = together

    @property
    def mean(self) -> float:
        """0 without any value."""
        return self._mean

    @property
    def std(self) -> float:
        """Of the values themselves, not of a sample; 1 if they are all alike, so that they become 0."""
        std = math.sqrt(self._squares / self._count) if self._count else 0.0
        return std if std > 0 else 1.0
