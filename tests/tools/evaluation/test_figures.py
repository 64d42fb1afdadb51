from __future__ import annotations

import math

import numpy as np
import pytest

from dlrm_factory.tools.evaluation.figures import measure


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_figures_by_hand():
    # Two of four clicked; three of the four pairs are in order.
    labels = np.array([1, 0, 1, 0], dtype=np.uint8)
    logits = np.array([logit(p) for p in (0.8, 0.2, 0.4, 0.5)])
    found = measure(labels, logits)
    assert (found.samples, found.clicks, found.base_rate, found.auc) == (4, 2, 0.5, 0.75)
    loss = -(math.log(0.8) + math.log(0.8) + math.log(0.4) + math.log(0.5)) / 4
    assert found.log_loss == pytest.approx(loss)
    assert found.normalised_entropy == pytest.approx(loss / math.log(2))
    assert found.calibration == pytest.approx(1.9 / 2)
    assert found.auc_low < 0.75 < found.auc_high
    # Four scores, each in a bin of its own.
    assert found.calibration_error == pytest.approx((0.2 + 0.2 + 0.6 + 0.5) / 4)


def test_what_is_not_defined_is_none():
    alike = measure(np.zeros(3, dtype=np.uint8), np.array([0.0, 1.0, 2.0]))
    assert (alike.auc, alike.auc_low, alike.normalised_entropy, alike.calibration) == (None,) * 4
    assert alike.base_rate == 0
    assert alike.log_loss > 0
    nothing = measure(np.empty(0, dtype=np.uint8), np.empty(0))
    assert nothing.samples == 0
    assert (nothing.base_rate, nothing.log_loss, nothing.calibration_error) == (None,) * 3
    one_click = measure(np.array([1, 0], dtype=np.uint8), np.array([1.0, 0.0]))
    assert (one_click.auc, one_click.auc_low) == (1.0, None)


def test_figures_are_of_what_is_answered():
    """Logits that no answer tells apart tie, and a wrong answer of exactly 1 is finite."""
    labels = np.array([1, 0, 1, 0], dtype=np.uint8)
    found = measure(labels, np.float32([60, 50, 20, 19.9]))
    assert found.ties == 2
    assert found.auc == (0.5 + 1 + 0 + 1) / 4
    assert found.log_loss == pytest.approx((53 * math.log(2) + 20) / 4, abs=0.03)
    assert measure(labels, np.float32([22, 21, 20, 19.9])).ties == 0
