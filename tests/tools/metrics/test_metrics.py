from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.tools.metrics.metrics import (
    answers_log_loss,
    auc,
    calibration,
    entropy,
    expected_calibration_error,
    log_loss,
    normalised_entropy,
    quantile_bins,
    ties,
)

samples = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=40)


def test_auc_by_hand():
    # Of the four (click, other) pairs three are in order: 0.9 > 0.2, 0.9 > 0.5, 0.3 > 0.2, but 0.3 < 0.5.
    assert auc([1, 0, 1, 0], [0.9, 0.2, 0.3, 0.5]) == 0.75


@given(samples)
def test_auc_is_the_share_of_pairs_in_order(drawn):
    clicks = [score for label, score in drawn if label]
    others = [score for label, score in drawn if not label]
    area = auc([label for label, _ in drawn], [score for _, score in drawn])
    if not clicks or not others:
        assert math.isnan(area)
        return
    wins = sum((c > o) + 0.5 * (c == o) for c in clicks for o in others)
    assert area == pytest.approx(wins / (len(clicks) * len(others)))


def test_auc_equals_torchmetrics():
    from torchmetrics.functional.classification import binary_auroc

    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 500)
    logits = np.round(rng.normal(labels, 1.0), 1).astype(np.float32)
    theirs = binary_auroc(torch.from_numpy(logits).sigmoid(), torch.from_numpy(labels))
    assert auc(labels, logits) == pytest.approx(float(theirs), abs=1e-6)


def test_log_loss_equals_torch():
    rng = np.random.default_rng(6)
    labels, logits = rng.integers(0, 2, 300).astype(np.float64), rng.normal(0, 4, 300)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(labels)
    )
    assert log_loss(labels, logits) == pytest.approx(float(theirs), rel=1e-12)


def test_log_loss_of_a_confident_mistake_is_finite():
    assert log_loss([1.0], [-5000.0]) == 5000.0
    assert math.isnan(log_loss([], []))


def test_log_loss_of_answers_equals_that_of_their_logits():
    rng = np.random.default_rng(6)
    labels, logits = rng.integers(0, 2, 300), rng.normal(0, 4, 300)
    assert answers_log_loss(labels, 1 / (1 + np.exp(-logits))) == pytest.approx(log_loss(labels, logits))
    assert math.isnan(answers_log_loss([], []))


@pytest.mark.parametrize(
    ("label", "score", "loss"), [(0, 1.0, 53 * math.log(2)), (1, 0.0, 149 * math.log(2))]
)
def test_log_loss_of_a_wrong_certainty_is_finite(label, score, loss):
    assert answers_log_loss([label], [score]) == pytest.approx(loss)
    assert answers_log_loss([1 - label], [score]) == pytest.approx(0, abs=1e-15)


def test_ties_are_samples_that_another_logit_shares_a_score_with():
    assert ties([3, 1, 2, 2], [0.3, 0.1, 0.2, 0.2]) == 0  # equal logits have equal scores
    assert ties([3, 1, 2, 2, 4], [0.2, 0.1, 0.2, 0.2, 0.4]) == 3
    assert ties([], []) == 0


def test_entropy_by_hand():
    assert entropy(0.5) == pytest.approx(math.log(2))
    assert entropy(0.25) == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert entropy(0.0) == entropy(1.0) == 0


def test_normalised_entropy_of_the_base_rate_is_1():
    labels = [1, 0, 0, 0]
    assert normalised_entropy(labels, [0.25] * 4) == pytest.approx(1)
    assert normalised_entropy(labels, [0.4, 0.25, 0.25, 0.25]) < 1
    assert math.isnan(normalised_entropy([1, 1], [0.5, 0.5]))
    assert math.isnan(normalised_entropy([], []))


def test_calibration_by_hand():
    assert calibration([1, 0, 1, 0], [0.9, 0.3, 0.8, 0.2]) == pytest.approx(2.2 / 2)
    assert math.isnan(calibration([0, 0], [0.1, 0.2]))


def test_expected_calibration_error_by_hand():
    # Two bins: scores 0.1 and 0.3 with one click of two, then 0.6 and 0.8 with two of two.
    scores, labels = [0.6, 0.1, 0.8, 0.3], [1, 0, 1, 1]
    by_hand = 0.5 * abs(0.2 - 0.5) + 0.5 * abs(0.7 - 1.0)
    assert expected_calibration_error(labels, scores, bins=2) == pytest.approx(by_hand)
    assert expected_calibration_error(labels, labels) == 0
    assert math.isnan(expected_calibration_error([], []))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 12))
def test_quantile_bins_follow_the_order_and_keep_equal_values_together(values, bins):
    x = np.array(values)
    of = quantile_bins(x, bins)
    assert set(of) == set(range(of.max() + 1))
    assert of.max() < bins
    order = np.argsort(x, kind="stable")
    assert (np.diff(of[order]) >= 0).all()
    assert len({(value, place) for value, place in zip(values, of.tolist(), strict=True)}) == len(set(values))


def test_quantile_bins_are_about_equally_full():
    of = quantile_bins(np.random.default_rng(2).normal(size=1000), 20)
    assert np.bincount(of).tolist() == [50] * 20
    assert quantile_bins([], 5).tolist() == []
