"""Samples counted into the bins of a reference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, select_bags, tile_context
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features.ids import mix_int64
from dlrm_factory.monitoring.metrics_file import DriftPart
from dlrm_factory.monitoring.reference import Reference

__all__ = ["DriftCounter", "Observed", "drift_parts"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def drift_parts(reference: Reference) -> list[DriftPart]:
    """Parts of the counts: the scores, dense features, sparse features, in declared order."""
    return [
        DriftPart(kind="score", feature="", shares=reference.scores.shares),
        *(
            DriftPart(kind="dense", feature=name, shares=bins.shares)
            for name, bins in reference.dense.items()
        ),
        *(
            DriftPart(kind="sparse", feature=name, shares=ids.shares)
            for name, ids in reference.sparse.items()
        ),
    ]


class Observed(NamedTuple):
    """Samples that were scored.

    Fields:
        batch: B samples.
        context: the one sample whose bags they share; None if they share nothing.
        logits: float32 [B].
        apart: each is of a request of its own; else they are of one, and only one of them counts.
    """

    batch: FeatureBatch
    context: FeatureBatch | None
    logits: Float32
    apart: bool


class DriftCounter:
    """Counts samples into the bins of ``reference``, in blocks of time.

    Of a request of several samples one counts, each time the next: a user's features are the same in all of them, and
    a window of few users would else look like drift.
    """

    def __init__(
        self, reference: Reference, declaration: DLRMDeclaration, blocks: Float64, block_seconds: float
    ):
        """``blocks``: float64 [blocks, width], see `Drift`."""
        self._blocks, self._block_seconds = blocks, block_seconds
        self._edges = [np.array(bins.edges, dtype=np.float32) for bins in reference.dense.values()]
        self._score_edges = np.array(reference.scores.edges, dtype=np.float32)
        ids = list(reference.sparse.values())
        self._cells = np.array([len(each.cells) for each in ids], dtype=np.int64)
        rows = [declaration.table(f.table).num_embeddings for f in declaration.sparse_features]
        self._is_row = np.array(rows, dtype=np.int64) == self._cells
        self._first_cell = np.cumsum(self._cells) - self._cells
        sizes = np.array([len(each.shares) for each in ids], dtype=np.int64)
        self._first_bin = np.cumsum(sizes) - sizes
        self._empty_bin = self._first_bin + sizes - 1
        self._bins = int(sizes.sum())
        digits = [[int(digit, 16) for digit in each.cells] for each in ids]
        self._bin_of_cell = np.array(
            [first + bin_ for first, cells in zip(self._first_bin, digits, strict=True) for bin_ in cells],
            dtype=np.int64,
        )
        self._turn = 0

    def count(self, observed: Sequence[Observed], now: float | None = None) -> None:
        """Count samples of ``observed`` into the block of the time ``now``, seconds since the epoch."""
        taken = [self._take(each) for each in observed if len(each.batch)]
        if not taken:
            return
        batch = concatenate([each.batch for each in taken])
        logits = np.concatenate([each.logits for each in taken])
        block = self._block(time.time() if now is None else now)
        block[1] += len(batch)
        block[2:] += np.concatenate(
            [
                _counts(logits, self._score_edges),
                *(_counts(batch.dense[:, i], edges) for i, edges in enumerate(self._edges)),
                self._id_counts(batch),
            ]
        )

    def _take(self, observed: Observed) -> Observed:
        """The samples that count, each with its own bags."""
        if observed.apart:
            return observed
        self._turn += 1
        i = self._turn % len(observed.batch)
        source = np.full((len(observed.batch.lengths), 1), i)
        one = select_bags(observed.batch, source, dense=observed.batch.dense[i : i + 1])
        if observed.context is not None:
            one = tile_context(one, SharedContext(bags=observed.context, spans=[(0, 1)]))
        return Observed(one, None, observed.logits[i : i + 1], True)

    def _id_counts(self, batch: FeatureBatch) -> npt.NDArray[np.int64]:
        ids = batch.lengths.sum(axis=1)
        feature = np.repeat(np.arange(len(ids)), ids)
        hashed = (mix_int64(batch.values) % self._cells[feature].astype(np.uint64)).astype(np.int64)
        cell = np.where(self._is_row[feature], batch.values, hashed)
        counts = np.bincount(self._bin_of_cell[self._first_cell[feature] + cell], minlength=self._bins)
        counts[self._empty_bin] += (batch.lengths == 0).sum(axis=1)
        return counts

    def _block(self, now: float) -> Float64:
        number = now // self._block_seconds
        block: Float64 = self._blocks[int(number) % len(self._blocks)]
        if block[0] != number:
            block[:] = 0  # before it has the new time, so that nobody takes old counts for new ones
            block[0] = number
        return block


def _counts(values: Float32, edges: Float32) -> npt.NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
