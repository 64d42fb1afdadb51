from __future__ import annotations

import numpy as np
import pytest

from dlrm_factory.tools.evaluation.figures import curves_of
from dlrm_factory.tools.metrics.metrics import auc


def curves(labels: list[int], scores: list[float], bins: int = 2):
    return curves_of(np.array(labels, dtype=np.uint8), np.array(scores), bins=bins)


def test_roc_by_hand():
    roc = curves([1, 0, 1, 0], [0.9, 0.2, 0.3, 0.5]).roc
    # Thresholds 0.9, 0.5, 0.3, 0.2.
    assert roc.true_positive_rate.tolist() == [0, 0.5, 0.5, 1, 1]
    assert roc.false_positive_rate.tolist() == [0, 0, 0.5, 0.5, 1]


def test_equal_scores_pass_a_threshold_together():
    roc = curves([1, 0, 0, 1], [0.5, 0.5, 0.5, 0.5]).roc
    assert (roc.true_positive_rate.tolist(), roc.false_positive_rate.tolist()) == ([0, 1], [0, 1])


def test_the_area_under_a_thinned_curve_is_the_auc():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 20_000).astype(np.uint8)
    scores = 1 / (1 + np.exp(-rng.normal(labels, 1.5)))
    roc = curves_of(labels, scores, bins=20).roc
    assert len(roc.true_positive_rate) <= 500
    for rates in (roc.true_positive_rate, roc.false_positive_rate):
        assert (rates[0], rates[-1]) == (0, 1)
        assert (np.diff(rates) >= 0).all()
    area = np.trapezoid(roc.true_positive_rate, roc.false_positive_rate)
    assert area == pytest.approx(auc(labels, scores), abs=1e-4)


def test_labels_that_are_alike_have_no_roc():
    assert curves([1, 1], [0.1, 0.2]).roc is None


def test_reliability_by_hand():
    found = curves([0, 1, 1, 1], [0.1, 0.3, 0.6, 0.8]).reliability
    assert found.score.tolist() == pytest.approx([0.2, 0.7])
    assert found.click_rate.tolist() == [0.5, 1.0]
    assert found.samples.tolist() == [2, 2]


def test_a_histogram_counts_every_sample():
    found = curves([0, 1, 0], [0.0, 0.5, 0.25]).histogram
    assert (found.edges[0], found.edges[-1]) == (0.0, 0.5)
    assert (found.clicks.sum(), found.others.sum()) == (1, 2)
    assert found.clicks[-1] == 1
    assert (found.others[0], found.others[25]) == (1, 1)
    assert curves([0, 1], [0.0, 0.0]).histogram.others.sum() == 1
