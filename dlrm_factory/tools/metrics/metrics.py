"""How good click predictions are, exact, in NumPy: AUC, log-loss, normalised entropy, calibration."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = [
    "auc",
    "calibration",
    "entropy",
    "expected_calibration_error",
    "log_loss",
    "normalised_entropy",
    "quantile_bins",
]

Int64 = npt.NDArray[np.int64]


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


def entropy(rate: float) -> float:
    """-(r ln r + (1 - r) ln(1 - r)) of a click rate r in [0, 1], in nats: the log-loss of always predicting r."""
    return -sum(share * math.log(share) for share in (rate, 1 - rate) if share > 0)


def normalised_entropy(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Log-loss over the entropy of the base rate, so that data with few clicks compares with data with many.

    1 is what predicting the base rate for every sample reaches; lower is better. NaN if all labels are alike.
    He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014, equation (3).
    """
    rates = np.asarray(labels, dtype=np.float64)
    baseline = entropy(float(rates.mean())) if len(rates) else 0.0
    return log_loss(labels, logits) / baseline if baseline else math.nan


def calibration(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Predicted clicks over clicks, sum of scores / sum of labels; 1 is best, 1.1 predicts 10% too many.

    Args:
        labels: [N] of 0 and 1.
        scores: [N], probabilities.

    Returns:
        NaN if there is no click. He et al. 2014 (as in `normalised_entropy`), section 3.1.
    """
    clicks = float(np.sum(labels, dtype=np.float64))
    return float(np.sum(scores, dtype=np.float64)) / clicks if clicks else math.nan


def expected_calibration_error(labels: npt.ArrayLike, scores: npt.ArrayLike, *, bins: int = 20) -> float:
    """Sum over bins b of (n_b / N) |mean score - mean label|, over bins of about equally many samples.

    Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015, with
    `quantile_bins` in place of bins of equal width: click rates crowd near 0. In probability; NaN for no samples.
    """
    truth, probabilities = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if not len(probabilities):
        return math.nan
    of = quantile_bins(probabilities, bins)
    gaps = np.bincount(of, weights=probabilities) - np.bincount(of, weights=truth)
    return float(np.abs(gaps).sum() / len(probabilities))


def quantile_bins(values: npt.ArrayLike, bins: int) -> Int64:
    """The bin of each of N values, int64 [N] from 0: about N / bins in each, equal values in one.

    The edges are the quantiles k / bins that are values themselves; bins that ties leave empty are not counted.
    """
    x = np.asarray(values)
    if not len(x):
        return np.empty(0, dtype=np.int64)
    edges = np.unique(np.quantile(x, np.arange(1, bins) / bins, method="inverted_cdf"))
    return np.unique(np.searchsorted(edges, x, side="left"), return_inverse=True)[1].reshape(-1)
