"""The range of a column's numbers, and some of them for its quantiles."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["NumberSample"]

Float64 = npt.NDArray[np.float64]

_MOST = 1 << 18


class NumberSample:
    """Least and greatest of all numbers; quantiles of every k-th one, where k grows with the data."""

    def __init__(self) -> None:
        self.least, self.most = math.inf, -math.inf
        self.fractional = False
        self._kept: Float64 = np.empty(0)
        self._step, self._next = 1, 0

    def add(self, numbers: Float64) -> None:
        """Take float64 [n]; infinite ones are passed over."""
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return
        self.least, self.most = min(self.least, float(numbers.min())), max(self.most, float(numbers.max()))
        self.fractional = self.fractional or bool((numbers != np.floor(numbers)).any())
        self._kept = np.append(self._kept, numbers[self._next :: self._step])
        self._next = (self._next - len(numbers)) % self._step
        while len(self._kept) > _MOST:
            self._kept = self._kept[::2]
            self._step *= 2

    def quantile(self, share: float) -> float:
        """A number of the sample; 0 without any."""
        if not len(self._kept):
            return 0.0
        return float(np.quantile(self._kept, share, method="lower"))

    @property
    def long_tailed(self) -> bool:
        """Mostly small and none much below 0, with some at least eight times the median: counts, prices."""
        return self.least > -10 and self.quantile(0.99) >= 8 * max(self.quantile(0.5), 1)
