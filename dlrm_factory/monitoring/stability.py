"""Population stability index of counts against shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["psi"]

# Added to every bin, so that an empty one does not make the index infinite.
_PSEUDO_COUNT = 0.5


def psi(counts: npt.NDArray[np.float64], shares: Sequence[float]) -> float:
    """Population stability index of ``counts`` [bins] against ``shares`` [bins]; 0 without counts.

    Sum of (p - q) ln(p / q). Without any drift it is (bins - 1) × (1/n + 1/m) on average, for n counts and m samples of
    the reference.
    """
    total = counts.sum()
    if not total:
        return 0.0
    p = (counts + _PSEUDO_COUNT) / (total + _PSEUDO_COUNT * len(counts))
    q = np.array(shares) / np.sum(shares)
    return float(np.sum((p - q) * np.log(p / q)))
