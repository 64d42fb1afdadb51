from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from dlrm_factory.tools.metrics.metrics import auc, auc_interval, compare_aucs


def kernel(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """1, ½ or 0 for each pair of a click and a non-click: float64 [clicks, others]."""
    clicks, others = scores[labels == 1], scores[labels == 0]
    return (clicks[:, None] > others[None, :]) + 0.5 * (clicks[:, None] == others[None, :])


def drawn(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    one = np.round(rng.normal(labels, 1.0), 1)  # with ties
    return labels, one, np.round(0.5 * one + rng.normal(0.3 * labels, 1.0), 1)


def test_by_hand():
    # Clicks score 3 and 1, others 2 and 0: of four pairs one, 1 against 2, is out of order.
    # Placements: clicks 1 and ½, others ½ and 1; each has variance 1/8, so the AUC's is 1/8 / 2 + 1/8 / 2 = 1/8.
    low, high = auc_interval([1, 1, 0, 0], [3, 1, 2, 0], confidence=0.5)
    width = NormalDist().inv_cdf(0.75) * math.sqrt(1 / 8)
    assert (low, high) == pytest.approx((0.75 - width, 0.75 + width))


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_is_that_of_all_pairs(seed):
    labels, scores, _ = drawn(seed)
    pairs = kernel(labels, scores)
    m, n = pairs.shape
    error = math.sqrt(pairs.mean(axis=1).var(ddof=1) / m + pairs.mean(axis=0).var(ddof=1) / n)
    low, high = auc_interval(labels, scores)
    assert (low + high) / 2 == pytest.approx(auc(labels, scores))
    assert high - low == pytest.approx(2 * 1.959964 * error)


@pytest.mark.parametrize("seed", range(5))
def test_a_difference_is_that_of_all_pairs(seed):
    labels, one, other = drawn(seed)
    first, second = kernel(labels, one), kernel(labels, other)
    m, n = first.shape
    # S10 and S01 of DeLong: 2 x 2 covariances of the placements; the contrast is (1, -1).
    variance = 0.0
    for axis, count in ((1, m), (0, n)):
        s = np.cov(first.mean(axis=axis), second.mean(axis=axis))
        variance += (s[0, 0] + s[1, 1] - 2 * s[0, 1]) / count
    found = compare_aucs(labels, one, other)
    assert found.difference == pytest.approx(auc(labels, one) - auc(labels, other))
    assert found.high - found.low == pytest.approx(2 * 1.959964 * math.sqrt(variance))
    z = abs(found.difference) / math.sqrt(variance)
    assert found.p_value == pytest.approx(2 * (1 - NormalDist().cdf(z)))
    assert found.is_significant == (z > 1.959964)


def test_the_interval_holds_the_true_auc_about_as_often_as_it_says():
    # For normal scores one deviation apart the AUC is P(N(1, 2) > 0).
    truth = NormalDist().cdf(1 / math.sqrt(2))
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(400):
        labels = rng.integers(0, 2, 200)
        low, high = auc_interval(labels, rng.normal(labels, 1.0))
        inside += low <= truth <= high
    assert 0.92 < inside / 400 < 0.98


def test_the_same_scores_do_not_differ():
    labels, one, _ = drawn(0)
    found = compare_aucs(labels, one, 2 * one + 1)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert not found.is_significant


def test_the_interval_stays_within_0_and_1():
    low, high = auc_interval([1, 1, 1, 0, 0, 0], [6, 5, 2, 3, 1, 0])
    assert 0 < low < high == 1.0
    assert auc_interval([1, 1, 0, 0], [4, 3, 2, 1]) == (1.0, 1.0)


def test_a_variance_needs_two_of_each_label():
    assert auc_interval([1, 0, 0], [3, 2, 1]) is None
    assert compare_aucs([1, 1, 0], [3, 2, 1], [1, 2, 3]) is None
    assert auc_interval([], []) is None
