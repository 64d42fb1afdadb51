"""What the pictures show, as numbers: the ROC curve, the reliability of probabilities, and where scores lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.tools.metrics.metrics import quantile_bins

__all__ = ["Curves", "Histogram", "Reliability", "Roc", "curves_of"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_ROC_POINTS = 500
_HISTOGRAM_BINS = 50


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
