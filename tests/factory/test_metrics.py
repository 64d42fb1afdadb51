from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.metrics import auc, log_loss

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
