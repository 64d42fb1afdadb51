"""Encoded bags without ids that are to be left out. Training and serving share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import SparseFeature
from dlrm_factory.features.vocabulary_rows import DROPPED

__all__ = ["trim_bags", "truncated_bags"]

Int64 = npt.NDArray[np.int64]
L = TypeVar("L", npt.NDArray[np.int32], npt.NDArray[np.int64])
Weights: TypeAlias = "npt.NDArray[np.float32] | None"


def trim_bags(
    features: Sequence[SparseFeature],
    rows: Int64,
    lengths: L,
    weights: Weights,
) -> tuple[Int64, L, Weights]:
    """Leave out what has no row, then cut bags of ``over_max_length: truncate`` to their first ids.

    Args:
        rows: int64 [lengths.sum()], feature-major, `DROPPED` for an id to leave out.
        lengths: [F, B].
        weights: float32 [lengths.sum()], or None.

    Returns:
        rows, lengths and weights of what is left.
    """
    if any(f.ids == "vocabulary" and not f.out_of_vocabulary_rows for f in features):
        rows, lengths, weights = _keep(rows != DROPPED, rows, lengths, weights)
    if any(feature.over_max_length == "truncate" for feature in features):
        most = _truncation_limits(features)
        if (lengths > most[:, None]).any():
            counts = lengths.reshape(-1).astype(np.int64)
            positions = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
            limits = np.repeat(most, lengths.sum(axis=1))
            rows, lengths, weights = _keep(positions < limits, rows, lengths, weights)
    return rows, lengths, weights


def truncated_bags(features: Sequence[SparseFeature], lengths: npt.NDArray[np.int32]) -> Int64 | None:
    """Bags of ``lengths`` [F, B] that ``over_max_length: truncate`` cuts: int64 [F]; None if there are none."""
    over = lengths > _truncation_limits(features)[:, None]
    return over.sum(axis=1) if over.any() else None


def _truncation_limits(features: Sequence[SparseFeature]) -> Int64:
    no_limit = np.iinfo(np.int32).max
    return np.array([f.max_length if f.over_max_length == "truncate" else no_limit for f in features])


def _keep(
    kept: npt.NDArray[np.bool_],
    rows: Int64,
    lengths: L,
    weights: Weights,
) -> tuple[Int64, L, Weights]:
    if kept.all():
        return rows, lengths, weights
    bags = np.repeat(np.arange(lengths.size), lengths.reshape(-1))[kept]
    counts = np.bincount(bags, minlength=lengths.size).astype(lengths.dtype).reshape(lengths.shape)
    return rows[kept], counts, None if weights is None else weights[kept]
