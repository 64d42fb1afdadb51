"""How certain an AUC is, and whether one model's is really higher than another's on the same samples.

DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic
Curves: A Nonparametric Approach", Biometrics 44 (1988), by mid-ranks as in Sun and Xu, "Fast Implementation of DeLong's
Algorithm for Comparing the Areas Under Correlated Receiver Operating Characteristic Curves", IEEE Signal Processing
Letters 21 (2014): O(N log N).

With m clicks and n others, each click has a placement V10, the share of the others that score below it (ties count
one half), and each other a placement V01, the share of the clicks that score above it. The AUC is the mean of either.
Its variance is var(V10) / m + var(V01) / n; for two models var becomes the covariance of their placements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

__all__ = ["AucDifference", "auc_interval", "compare_aucs"]

Float64 = npt.NDArray[np.float64]

_FEWEST = 2  # of each label: a variance needs two


@dataclass(frozen=True, slots=True, kw_only=True)
class AucDifference:
    """The AUC of one model less that of another, over the same samples.

    Fields:
        difference: the first model's less the second's.
        low, high: the 95% confidence interval of the difference.
        p_value: how likely a difference at least so large would be if both were equally good; two-sided.
    """

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference is other than 0 at the 5% level."""
        return self.p_value < 0.05


def auc_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """The AUC's confidence interval within [0, 1], normal approximation; None with fewer than 2 samples a label.

    An AUC of exactly 0 or 1 gets the interval of no width, which says only that no pair was out of order.
    """
    placements = _placements(labels, scores)
    if placements is None:
        return None
    clicks, others = placements
    error = math.sqrt(clicks.var(ddof=1) / len(clicks) + others.var(ddof=1) / len(others))
    width = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    area = float(clicks.mean())
    return max(0.0, area - width), min(1.0, area + width)


def compare_aucs(labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> AucDifference | None:
    """``first``'s AUC less ``second``'s, [N] scores of the same samples; None with fewer than 2 of either label."""
    one, other = _placements(labels, first), _placements(labels, second)
    if one is None or other is None:
        return None
    # The variance of a difference of means over the same samples is that of the mean of differences.
    variance = sum((a - b).var(ddof=1) / len(a) for a, b in zip(one, other, strict=True))
    difference, error = float(one[0].mean() - other[0].mean()), math.sqrt(variance)
    width = NormalDist().inv_cdf(0.975) * error
    if error:
        p_value = math.erfc(abs(difference) / error / math.sqrt(2))
    else:
        p_value = 1.0 if difference == 0 else 0.0
    return AucDifference(
        difference=difference, low=difference - width, high=difference + width, p_value=p_value
    )


def _placements(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Float64, Float64] | None:
    """V10, float64 [clicks], and V01, float64 [others]; None if either has too few for a variance."""
    clicked, x = np.asarray(labels) > 0, np.asarray(scores)
    m, n = int(clicked.sum()), int((~clicked).sum())
    if min(m, n) < _FEWEST:
        return None
    everywhere = _mid_ranks(x)
    clicks = (everywhere[clicked] - _mid_ranks(x[clicked])) / n
    others = 1 - (everywhere[~clicked] - _mid_ranks(x[~clicked])) / m
    return clicks, others


def _mid_ranks(x: npt.NDArray[np.floating]) -> Float64:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks: Float64 = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
