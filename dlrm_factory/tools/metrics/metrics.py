"""Quality of click predictions, exact, in NumPy: AUC, also by group, log-loss, normalised entropy, calibration.

Confidence intervals of AUCs are DeLong's: DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More
Correlated Receiver Operating Characteristic Curves: A Nonparametric Approach", Biometrics 44 (1988), by mid-ranks as
in Sun and Xu, "Fast Implementation of DeLong's Algorithm for Comparing the Areas Under Correlated Receiver Operating
Characteristic Curves", IEEE Signal Processing Letters 21 (2014): O(N log N).

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

__all__ = [
    "AucDifference",
    "GroupedAuc",
    "answers_log_loss",
    "auc",
    "auc_interval",
    "calibration",
    "compare_aucs",
    "entropy",
    "expected_calibration_error",
    "grouped_auc",
    "log_loss",
    "normalised_entropy",
    "quantile_bins",
    "ties",
]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
_MIN_ANSWER, _MAX_ANSWER = float(np.finfo(np.float32).smallest_subnormal), float(np.nextafter(1, 0))
_MIN_SAMPLES = 2  # of each label: a variance needs two


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAuc:
    """Mean of the AUCs of groups of samples, by samples: NaN if no group has both labels.

    Fields:
        groups, samples: those with both labels, and the samples in them.
    """

    auc: float
    groups: int
    samples: int


def grouped_auc(labels: npt.ArrayLike, scores: npt.ArrayLike, groups: Int64) -> GroupedAuc:
    """GAUC: each group's AUC, weighted by its samples, over the groups that have both labels.

    It tells how well a user's candidates are ranked, where the AUC of all samples also counts pairs of two users.
    Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", KDD 2017, section 4.2, by impressions.

    Args:
        labels, scores: as in `auc`.
        groups: [N], the group of each sample from 0; below 0 for none, which counts for nothing.
    """
    inside = groups >= 0
    clicked, x, own = np.asarray(labels)[inside] > 0, np.asarray(scores)[inside], groups[inside]
    order = np.lexsort((x, own))
    clicked, x, own = clicked[order], x[order], own[order]
    starts_group = np.append(True, own[1:] != own[:-1])[: len(own)]
    starts_tie = np.append(True, starts_group[1:] | (x[1:] != x[:-1]))[: len(own)]
    firsts = np.flatnonzero(starts_group)
    tie = np.cumsum(starts_tie) - 1
    sizes = np.bincount(tie)
    of = np.cumsum(starts_group) - 1
    # Mid-ranks from 1 within the group, as in `auc`.
    ranks = np.cumsum(sizes)[tie] - (sizes[tie] - 1) / 2 - firsts[of]
    samples = np.bincount(of, minlength=len(firsts))
    clicks = np.bincount(of, weights=clicked, minlength=len(firsts))
    both = (clicks > 0) & (clicks < samples)
    if not both.any():
        return GroupedAuc(auc=math.nan, groups=0, samples=0)
    sums = np.bincount(of, weights=ranks * clicked, minlength=len(firsts))[both]
    m, n = clicks[both], samples[both]
    areas = (sums - m * (m + 1) / 2) / (m * (n - m))
    return GroupedAuc(auc=float(areas @ n / n.sum()), groups=int(both.sum()), samples=int(n.sum()))


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


def answers_log_loss(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """`log_loss` of probabilities as they are answered: ``scores``, float64 [N] in [0, 1].

    An answer of exactly 0 or 1 counts as the nearest one that is not, 1.4e-45 or 1 - 1.1e-16, so that a wrong one
    costs 103 or 37 nats and not infinity.
    """
    x, clicked = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    if not len(x):
        return math.nan
    happened = np.where(clicked, np.log(np.maximum(x, _MIN_ANSWER)), np.log1p(-np.minimum(x, _MAX_ANSWER)))
    return float(-happened.mean())


def ties(logits: npt.ArrayLike, scores: npt.ArrayLike) -> int:
    """Samples whose score ([N], rising with the logit) is also that of a sample with another logit ([N])."""
    order = np.argsort(np.asarray(logits), kind="stable")
    if not len(order):
        return 0
    x, answered = np.asarray(logits)[order], np.asarray(scores)[order]
    starts_score = np.append(True, answered[1:] != answered[:-1])
    starts = np.flatnonzero(starts_score)
    has_several = np.logical_or.reduceat(np.append(False, x[1:] != x[:-1]) & ~starts_score, starts)
    return int(np.diff(np.append(starts, len(x)))[has_several].sum())


def normalised_entropy(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Log-loss over the entropy of the base rate, so that data with few clicks compares with data with many.

    1 is what predicting the base rate for every sample reaches; lower is better. NaN if all labels are alike.
    He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014, equation (3). ``scores``:
    probabilities, as in `answers_log_loss`.
    """
    rates = np.asarray(labels, dtype=np.float64)
    baseline = entropy(float(rates.mean())) if len(rates) else 0.0
    return answers_log_loss(labels, scores) / baseline if baseline else math.nan


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
        """True if the difference is other than 0 at the 5% level."""
        return self.p_value < 0.05


def auc_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """DeLong confidence interval of an AUC within [0, 1], normal approximation; None with fewer than 2 samples a label.

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
    if min(m, n) < _MIN_SAMPLES:
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
