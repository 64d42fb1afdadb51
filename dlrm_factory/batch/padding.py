"""Spare samples at the end of a batch, so that a sample's score does not depend on how many others there are.

A matrix product of M rows on a CPU takes rows a block at a time, and the M mod 4 last rows by other instructions,
which add in another order: the last bits differ. With M a multiple of 4 no row is a last one. Measured with MKL on
AVX-512; where a library has other blocks, scores differ by rounding alone, as they would without spare samples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from dlrm_factory.batch.feature_batch import FeatureBatch

__all__ = ["pad_rows", "pad_samples"]

_BLOCK = 4


def pad_samples(batch: FeatureBatch) -> FeatureBatch:
    """``batch`` with up to 3 samples more, of zeros and empty bags: a multiple of 4 in all."""
    spare = -len(batch) % _BLOCK
    if spare == 0:
        return batch
    return FeatureBatch(
        dense=np.pad(batch.dense, ((0, spare), (0, 0))),
        lengths=np.pad(batch.lengths, ((0, 0), (0, spare))),
        values=batch.values,
        weights=batch.weights,
    )


def pad_rows(values: torch.Tensor) -> torch.Tensor:
    """``values`` [B, ...] with rows of zeros at the end, as many as `pad_samples` adds to B samples."""
    spare = -values.shape[0] % _BLOCK
    return functional.pad(values, (*(0,) * (2 * values.dim() - 1), spare)) if spare else values
