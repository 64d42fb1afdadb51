"""Figures and curves of a model's scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.requests.numbers import answered_probabilities
from dlrm_factory.tools.metrics.metrics import (
    answers_log_loss,
    auc,
    auc_interval,
    calibration,
    expected_calibration_error,
    normalised_entropy,
    quantile_bins,
    ties,
)

__all__ = [
    "CALIBRATION_BINS",
    "Curves",
    "Figures",
    "curves_of",
    "measure",
]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_ROC_POINTS = 500
_HISTOGRAM_BINS = 50

CALIBRATION_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Roc:
    """Shares of others and of clicks that score at or above falling thresholds: float64 [P], both from 0 to 1."""

    false_positive_rate: Float64
    true_positive_rate: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Bins of samples in order of score: mean score, share of clicks (float64 [K]) and samples (int64 [K])."""

    score: Float64
    click_rate: Float64
    samples: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Samples by score: edges float64 [K + 1] from 0 to the highest score; clicks and others int64 [K]."""

    edges: Float64
    clicks: Int64
    others: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """``roc`` is None if all labels are alike."""

    roc: Roc | None
    reliability: Reliability
    histogram: Histogram


def curves_of(labels: npt.NDArray[np.uint8], scores: Float64, *, bins: int) -> Curves:
    """The curves of ``scores`` (probabilities [N], N at least 1); ``bins``: of the reliability."""
    return Curves(
        roc=_roc(labels, scores),
        reliability=_reliability(labels, scores, bins),
        histogram=_histogram(labels, scores),
    )


def _roc(labels: npt.NDArray[np.uint8], scores: Float64) -> Roc | None:
    clicks = int(labels.sum())
    others = len(labels) - clicks
    if not clicks or not others:
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(
        np.append(np.diff(scores[order]) != 0, True)
    )  # equal scores pass a threshold together
    hits = np.cumsum(labels[order], dtype=np.int64)[ends]
    x = np.append(0.0, (ends + 1 - hits) / others)
    y = np.append(0.0, hits / clicks)
    kept = _thinned(x + y)
    return Roc(false_positive_rate=x[kept], true_positive_rate=y[kept])


def _thinned(travelled: Float64) -> Int64:
    """Places about evenly along a rising curve, both ends among them."""
    wanted = np.linspace(0.0, travelled[-1], _ROC_POINTS)
    return np.unique(np.searchsorted(travelled, wanted).clip(max=len(travelled) - 1))


def _reliability(labels: npt.NDArray[np.uint8], scores: Float64, bins: int) -> Reliability:
    of = quantile_bins(scores, bins)
    samples = np.bincount(of)
    return Reliability(
        score=np.bincount(of, weights=scores) / samples,
        click_rate=np.bincount(of, weights=labels) / samples,
        samples=samples.astype(np.int64),
    )


def _histogram(labels: npt.NDArray[np.uint8], scores: Float64) -> Histogram:
    top = float(scores.max()) or 1.0
    edges = np.linspace(0.0, top, _HISTOGRAM_BINS + 1)
    clicks, others = (np.histogram(scores[labels == label], bins=edges)[0] for label in (1, 0))
    return Histogram(edges=edges, clicks=clicks.astype(np.int64), others=others.astype(np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of predictions, by the formulas of `dlrm_factory.tools.metrics.metrics`. None where one is not defined.

    All are of the probabilities that a client gets in JSON.

    Fields:
        samples, clicks: how many.
        base_rate: clicks / samples; None for no samples.
        auc: None if all labels are alike.
        auc_low, auc_high: the 95% confidence interval; None with fewer than 2 samples of either label.
        log_loss: in nats; None for no samples.
        normalised_entropy: None if all labels are alike.
        calibration: predicted clicks over clicks; None without clicks.
        calibration_error: expected, over CALIBRATION_BINS quantile bins, in probability; None for no samples.
        ties: samples that share their probability with one of another logit.
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
    ties: int


def measure(labels: npt.NDArray[np.uint8], logits: npt.NDArray[np.floating]) -> Figures:
    """The figures of ``logits`` ([N], float) for ``labels`` (uint8 [N] of 0 and 1)."""
    scores = answered_probabilities(logits)
    interval = auc_interval(labels, scores)
    low, high = interval if interval is not None else (None, None)
    return Figures(
        samples=len(labels),
        clicks=int(labels.sum()),
        base_rate=_defined(float(labels.mean())) if len(labels) else None,
        auc=_defined(auc(labels, scores)),
        auc_low=low,
        auc_high=high,
        log_loss=_defined(answers_log_loss(labels, scores)),
        normalised_entropy=_defined(normalised_entropy(labels, scores)),
        calibration=_defined(calibration(labels, scores)),
        calibration_error=_defined(expected_calibration_error(labels, scores, bins=CALIBRATION_BINS)),
        ties=ties(logits, scores),
    )


def _defined(figure: float) -> float | None:
    return None if math.isnan(figure) else figure
