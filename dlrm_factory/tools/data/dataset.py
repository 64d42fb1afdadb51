"""Encoded clicks, in memory or mapped, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.batch.jagged_indices import jagged_indices
from dlrm_factory.tools.data.block_pages import WINDOW_BLOCKS, BlockPages
from dlrm_factory.tools.data.scratch import Scratch
from dlrm_factory.tools.data.split import epoch_order, epoch_windows

__all__ = ["ClickDataset", "slices"]

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickDataset:
    """N encoded samples, column by column.

    Fields:
        dense: float32 [N, dense features].
        labels: float32 [N] of 0 and 1.
        values: per sparse feature, int32 rows of its table (a table has fewer than 2**31), bag after bag.
        offsets: per sparse feature, int64 [N + 1]; bag i is values[offsets[i]:offsets[i + 1]].
        weights: per sparse feature, float32 like values; None for a feature without.
        scratch, pages: of a dataset whose arrays are mapped files.
    """

    dense: Float32
    labels: Float32
    values: tuple[npt.NDArray[np.int32], ...]
    offsets: tuple[Int64, ...]
    weights: tuple[Float32 | None, ...]
    scratch: Scratch | None = None
    pages: BlockPages | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def epoch_order(self, rows: Int64, *, seed: int, epoch: int) -> Int64:
        """The row numbers ``rows``, ascending, in the order of the epoch.

        `epoch_order`, or `epoch_windows` if the dataset is mapped; then the order is mapped, too.
        """
        if self.scratch is None or self.pages is None:
            return epoch_order(rows, seed=seed, epoch=epoch)
        windows = epoch_windows(rows, seed=seed, epoch=epoch, blocks=WINDOW_BLOCKS)
        order, mapping = self.scratch.stored(windows, np.int64)
        self.pages.follow(mapping)
        return order

    def features(self, rows: Int64) -> FeatureBatch:
        """The samples ``rows`` (int64 [B]), in that order."""
        if self.pages is not None:
            self.pages.touch(rows)
        lengths = np.empty((len(self.values), len(rows)), dtype=np.int32)
        values, weights = [], []
        for f, (ids, offsets) in enumerate(zip(self.values, self.offsets, strict=True)):
            starts = offsets[rows]
            lengths[f] = offsets[rows + 1] - starts
            places = jagged_indices(starts, lengths[f])
            values.append(ids[places])
            own = self.weights[f]
            weights.append(np.ones(len(places), dtype=np.float32) if own is None else own[places])
        is_weighted = any(own is not None for own in self.weights)
        return FeatureBatch(
            dense=self.dense[rows],
            lengths=lengths,
            values=np.concatenate(values, dtype=np.int64),
            weights=np.concatenate(weights) if is_weighted else None,
        )


def slices(rows: Int64, size: int) -> Iterator[Int64]:
    """``rows`` in consecutive pieces of ``size``; the last may be shorter."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
