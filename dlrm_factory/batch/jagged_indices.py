"""Indices of jagged parts within a flat array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["jagged_indices"]


def jagged_indices(
    starts: npt.NDArray[np.integer[Any]], lengths: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.int64]:
    """Int64 [lengths.sum()], part after part: starts [2, 7] and lengths [3, 1] → [2, 3, 4, 7]."""
    ends = np.cumsum(lengths, dtype=np.int64)
    moved = np.repeat(starts.astype(np.int64, copy=False) - ends + lengths, lengths)
    return moved + np.arange(len(moved))
