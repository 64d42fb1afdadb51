"""The figures of one set of predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.tools.metrics.metrics import (
    auc,
    auc_interval,
    calibration,
    expected_calibration_error,
    log_loss,
    normalised_entropy,
)

__all__ = ["CALIBRATION_BINS", "Figures", "measure", "sigmoid"]

CALIBRATION_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of predictions, by the formulas of `dlrm_factory.tools.metrics.metrics`. None where one is not defined.

    Fields:
        samples, clicks: how many.
        base_rate: clicks / samples; None for no samples.
        auc: None if all labels are alike.
        auc_low, auc_high: the 95% confidence interval; None with fewer than 2 samples of either label.
        log_loss: in nats; None for no samples.
        normalised_entropy: None if all labels are alike.
        calibration: predicted clicks over clicks; None without clicks.
        calibration_error: expected, over CALIBRATION_BINS quantile bins, in probability; None for no samples.
    """

    samples: int
    clicks: int
    base_rate: float | None
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    log_loss: float | None
    normalised_entropy: float | None
    calibration: float | None
    calibration_error: float | None


def measure(labels: npt.NDArray[np.uint8], logits: npt.NDArray[np.floating]) -> Figures:
    """The figures of ``logits`` ([N], float) for ``labels`` (uint8 [N] of 0 and 1)."""
    scores = sigmoid(logits)
    interval = auc_interval(labels, logits)
    low, high = interval if interval is not None else (None, None)
    return Figures(
        samples=len(labels),
        clicks=int(labels.sum()),
        base_rate=_defined(float(labels.mean())) if len(labels) else None,
        auc=_defined(auc(labels, logits)),
        auc_low=low,
        auc_high=high,
        log_loss=_defined(log_loss(labels, logits)),
        normalised_entropy=_defined(normalised_entropy(labels, logits)),
        calibration=_defined(calibration(labels, scores)),
        calibration_error=_defined(expected_calibration_error(labels, scores, bins=CALIBRATION_BINS)),
    )


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Probabilities, float64, of ``logits`` of any size: 1 / (1 + exp(-x)) without overflow."""
    scores: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    return scores


def _defined(figure: float) -> float | None:
    return None if math.isnan(figure) else figure
