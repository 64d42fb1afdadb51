"""Batch of model-ready features as NumPy columns: joined, split, padded, its bags selected.

Spare samples at the end of a batch keep a sample's score from depending on the number of others. A matrix product of M
rows on a CPU takes rows a block at a time, and the M mod 4 last rows by other instructions, which add in another order:
the last bits differ. With M a multiple of 4 no row is a last one. Measured with MKL on AVX-512; where a library has
other blocks, scores differ by rounding alone, as they would without spare samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch.jagged_indices import jagged_indices
from dlrm_factory.batch.substitutions import Substitutions

__all__ = [
    "FeatureBatch",
    "concatenate",
    "cut",
    "pad_rows",
    "pad_samples",
    "select_bags",
    "select_features",
    "split",
]

_BLOCK = 4


class FeatureBatch(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """B samples, checked and encoded: what a request becomes and what the model takes.

    The sparse part is jagged and feature-major: all bags of the first feature, then all of the second::

                    sample 0   sample 1   sample 2
        user_id     [7]        [7]        []          lengths  1 1 0 | 2 0 1
        item_tags   [3, 9]     []         [4]         values   7 7   | 3 9 4

    Fields:
        dense: float32 [B, number of dense features], in declared order.
        lengths: int32 [F, B], ids in each bag; features in declared order.
        values: int64 [lengths.sum()], rows of the features' tables.
        weights: float32 [lengths.sum()], what each row is multiplied by; None where all are 1.
        one_each: every bag is known to hold one id; False says nothing.
        in_range: every value is known to be a row of its table; False says nothing.
        substitutions: values that are not as they were sent; None says nothing. Batches made of others have none.
    """

    dense: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]
    values: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None = None
    one_each: bool = False
    in_range: bool = False
    substitutions: Substitutions | None = None

    def __len__(self) -> int:
        return int(self.dense.shape[0])


def concatenate(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    """The samples of ``batches`` in one batch, in order. At least one batch."""
    # A batch without samples adds nothing, and reduceat below cannot sum an empty range.
    batches = [batch for batch in batches if len(batch)] or batches[:1]
    if len(batches) == 1:
        return batches[0]
    lengths = np.concatenate([batch.lengths for batch in batches], axis=1)
    first_samples = _starts(np.array([len(batch) for batch in batches]))
    counts = np.add.reduceat(lengths, first_samples, axis=1, dtype=np.int64)
    order = _feature_major(counts)
    weights = None
    if any(batch.weights is not None for batch in batches):
        weights = np.concatenate([_weights_of(batch) for batch in batches])[order]
    return FeatureBatch(
        dense=np.concatenate([batch.dense for batch in batches]),
        lengths=lengths,
        values=np.concatenate([batch.values for batch in batches])[order],
        weights=weights,
        one_each=all(batch.one_each for batch in batches),
        in_range=all(batch.in_range for batch in batches),
    )


def split(batch: FeatureBatch, size: int) -> Iterator[FeatureBatch]:
    """``batch`` in pieces of ``size`` samples, in order; the last may be smaller. None of an empty batch."""
    return cut(batch, [*range(0, len(batch), size), len(batch)])


def cut(batch: FeatureBatch, bounds: Sequence[int]) -> Iterator[FeatureBatch]:
    """The samples between each two of ``bounds``, rising places in ``batch``."""
    features, samples = batch.lengths.shape
    places = np.zeros(features * samples + 1, dtype=np.int64)
    np.cumsum(batch.lengths.reshape(-1), out=places[1:])
    for start, stop in pairwise(bounds):
        spans = [
            slice(places[feature * samples + start], places[feature * samples + stop])
            for feature in range(features)
        ]
        yield FeatureBatch(
            dense=batch.dense[start:stop],
            lengths=batch.lengths[:, start:stop],
            values=np.concatenate([batch.values[span] for span in spans]),
            weights=None
            if batch.weights is None
            else np.concatenate([batch.weights[span] for span in spans]),
            one_each=batch.one_each,
            in_range=batch.in_range,
        )


def select_features(batch: FeatureBatch, features: Sequence[int]) -> FeatureBatch:
    """The same samples with the bags of ``features`` alone, their places in rising order."""
    if len(features) == len(batch.lengths):
        return batch
    ends = (
        np.cumsum(batch.lengths.sum(axis=1, dtype=np.int64)) if batch.lengths.size else np.zeros(0, np.int64)
    )
    spans = [slice(ends[f - 1] if f else 0, ends[f]) for f in features] if len(ends) else []
    none = np.empty(0, dtype=np.int64)
    return FeatureBatch(
        dense=batch.dense,
        lengths=batch.lengths[list(features)],
        values=np.concatenate([batch.values[span] for span in spans]) if spans else none,
        weights=None
        if batch.weights is None
        else np.concatenate([batch.weights[span] for span in spans] or [none.astype(np.float32)]),
        one_each=batch.one_each,
        in_range=batch.in_range,
    )


def _weights_of(batch: FeatureBatch) -> npt.NDArray[np.float32]:
    return np.ones(len(batch.values), dtype=np.float32) if batch.weights is None else batch.weights


def _feature_major(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places of values in R batches one after the other: of the first feature's in every batch, ...

    A feature's values of one batch lie together before and after, so whole blocks move. ``counts``: their
    sizes, int64 [F, R]. Returns int64 [counts.sum()].
    """
    before = _starts(counts.T.reshape(-1)).reshape(counts.T.shape).T.reshape(-1)
    after = _starts(counts.reshape(-1))
    moved = np.repeat(before - after, counts.reshape(-1))
    return moved + np.arange(len(moved))


def _starts(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Start of each of consecutive blocks."""
    return np.cumsum(sizes) - sizes


def select_bags(
    batch: FeatureBatch, source: npt.NDArray[np.int64], *, dense: npt.NDArray[np.float32]
) -> FeatureBatch:
    """N samples whose bags come from those of ``batch``.

    Args:
        batch: B samples.
        source: int64 [F, N]; bag f of new sample n is bag f of ``batch``'s sample ``source[f, n]``.
        dense: float32 [N, number of dense features].
    """
    ends = np.cumsum(batch.lengths.reshape(-1), dtype=np.int64).reshape(batch.lengths.shape)
    starts = np.take_along_axis(ends - batch.lengths, source, axis=1).reshape(-1)
    lengths = np.take_along_axis(batch.lengths, source, axis=1)
    positions = jagged_indices(starts, lengths.reshape(-1))
    weights = None if batch.weights is None else batch.weights[positions]
    return FeatureBatch(dense=dense, lengths=lengths, values=batch.values[positions], weights=weights)


def pad_samples(batch: FeatureBatch) -> FeatureBatch:
    """``batch`` with its last sample up to 3 times more: a multiple of 4 in all.

    A sample made up, such as one of zeros, might be one that the user's own net refuses.
    """
    size = len(batch)
    spare = -size % _BLOCK
    if spare == 0:
        return batch
    places = np.minimum(np.arange(size + spare), size - 1)
    source = np.broadcast_to(places, (len(batch.lengths), size + spare))
    return select_bags(batch, source, dense=batch.dense[places])


def pad_rows(values: torch.Tensor) -> torch.Tensor:
    """``values`` [B, ...] with the last row repeated at the end, as often as `pad_samples` adds it to B samples."""
    spare = -values.shape[0] % _BLOCK
    return torch.cat((values, values[-1:].expand(spare, *values.shape[1:]))) if spare else values
