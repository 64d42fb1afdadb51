"""New samples put together from the bags of others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.batch.jagged_indices import jagged_indices

__all__ = ["select_bags"]


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
