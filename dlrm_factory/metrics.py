"""How good click predictions are: area under the ROC curve and log-loss, exact, in NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["auc", "log_loss"]


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The chance that a click scores above a non-click; ties count one half (Mann-Whitney).

    Args:
        labels: [N] of 0 and 1.
        scores: [N], higher for a likelier click; logits and probabilities give the same.

    Returns:
        A number in [0, 1], or NaN if all labels are alike.
    """
    clicked = np.asarray(labels) > 0
    clicks = int(clicked.sum())
    others = len(clicked) - clicks
    if clicks == 0 or others == 0:
        return math.nan
    _, inverse, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][clicked].sum() - clicks * (clicks + 1) / 2) / (clicks * others))


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Mean of -ln(the probability given to what happened), in nats; NaN for no samples.

    Args:
        labels: [N] of 0 and 1.
        logits: [N]; computed in float64 without forming the probability, so no logit is too large.
    """
    x = np.asarray(logits, dtype=np.float64)
    if not len(x):
        return math.nan
    return float(np.mean(np.logaddexp(0.0, x) - np.asarray(labels, dtype=np.float64) * x))
