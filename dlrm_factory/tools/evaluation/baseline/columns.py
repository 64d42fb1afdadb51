"""Encoded samples → the columns that LightGBM learns from. Nothing here looks at labels.

From each dense feature: its number, as the DLRM gets it. Trees ask for order alone, which log1p and standardising keep.

From each sparse feature whose bags hold one id at most: a category, for the MOST_CATEGORIES ids most frequent in the
training rows; all other ids are one more category, and no id is a missing value.

From each sparse feature with longer bags: how many ids there are, and for each of the MOST_INDICATORS ids most frequent
in the training rows a column with the number of times it is in the bag.

A weighted feature counts its weights in place of 1; with one id at most it has one more column, the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.tools.data.dataset import ClickDataset, Int64, slices

__all__ = ["MOST_CATEGORIES", "MOST_INDICATORS", "Columns"]

MOST_CATEGORIES = 4096
MOST_INDICATORS = 64

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

_BLOCK = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sparse:
    """How one sparse feature becomes columns.

    Fields:
        is_category: one category column; else a count and indicators.
        codes: int32 [num_embeddings], the place of each row of the table among the frequent ones, or ``kept``.
        kept: how many ids have a place.
        weighted: its ids carry weights.
    """

    name: str
    is_category: bool
    codes: Int32
    kept: int
    weighted: bool

    @property
    def names(self) -> list[str]:
        if self.is_category:
            return [self.name, f"{self.name}.weight"] if self.weighted else [self.name]
        return [f"{self.name}.count", *(f"{self.name}.{place}" for place in range(self.kept))]

    def fill(self, columns: Float32, values: Int64, lengths: Int64, weights: Float32) -> None:
        """Write the feature's columns, float32 [B, len(names)], of bags laid one after another."""
        samples = np.repeat(np.arange(len(lengths)), lengths)
        codes = self.codes[values]
        if self.is_category:
            columns[:] = np.nan
            columns[samples, 0] = codes
            if self.weighted:
                columns[samples, 1] = weights
            return
        columns[:] = 0
        columns[:, 0] = lengths
        frequent = codes < self.kept
        np.add.at(columns, (samples[frequent], codes[frequent] + 1), weights[frequent])


class Columns:
    """Which columns there are, found in training rows."""

    def __init__(self, declaration: DLRMDeclaration, dataset: ClickDataset, rows: Int64) -> None:
        """``rows``: int64, the training rows of ``dataset``, ascending."""
        self._dense = declaration.dense_names
        tables = [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features]
        counts = [np.zeros(rows_of_table, dtype=np.int64) for rows_of_table in tables]
        longest = [0] * len(tables)
        for piece in slices(rows, _BLOCK):
            batch = dataset.features(piece)
            for f, (values, lengths, _) in enumerate(_bags(batch)):
                # Not bincount: it would walk the whole table for each block.
                np.add.at(counts[f], values, 1)
                longest[f] = max(longest[f], int(lengths.max(initial=0)))
        self._sparse = [
            _sparse(feature.name, feature.weighted, counts[f], longest[f])
            for f, feature in enumerate(declaration.sparse_features)
        ]

    @property
    def names(self) -> list[str]:
        """Of the columns, in order."""
        return [*self._dense, *(name for sparse in self._sparse for name in sparse.names)]

    @property
    def categories(self) -> list[int]:
        """Places of the columns that are categories."""
        first, found = len(self._dense), []
        for sparse in self._sparse:
            found += [first] if sparse.is_category else []
            first += len(sparse.names)
        return found

    def matrix(self, batch: FeatureBatch) -> Float32:
        """The columns of ``batch``: float32 [B, len(names)]; NaN where a value is missing."""
        columns = np.empty((len(batch), len(self.names)), dtype=np.float32)
        columns[:, : len(self._dense)] = batch.dense
        first = len(self._dense)
        for sparse, (values, lengths, weights) in zip(self._sparse, _bags(batch), strict=True):
            width = len(sparse.names)
            sparse.fill(columns[:, first : first + width], values, lengths, weights)
            first += width
        return columns


def _bags(batch: FeatureBatch) -> list[tuple[Int64, Int64, Float32]]:
    """Per sparse feature: values and weights (ones if there are none) of all bags, and their lengths, int64 [B]."""
    ends = np.cumsum(batch.lengths.sum(axis=1, dtype=np.int64))
    weights = np.ones(len(batch.values), dtype=np.float32) if batch.weights is None else batch.weights
    parts = zip(np.split(batch.values, ends[:-1]), np.split(weights, ends[:-1]), batch.lengths, strict=True)
    return [(values, lengths.astype(np.int64), own) for values, own, lengths in parts]


def _sparse(name: str, weighted: bool, counts: Int64, longest: int) -> _Sparse:
    is_category = longest <= 1
    most = MOST_CATEGORIES if is_category else MOST_INDICATORS
    kept = min(most, int(np.count_nonzero(counts)))
    order = np.argsort(-counts, kind="stable")[:kept]
    codes = np.full(len(counts), kept, dtype=np.int32)
    codes[order] = np.arange(kept, dtype=np.int32)
    return _Sparse(name=name, is_category=is_category, codes=codes, kept=kept, weighted=weighted)
