"""Arranged rows → what each rank is sent: the ids of just the rows that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.batch.jagged import pooling_weights
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.ranks.layout import Layout, RankLayout
from dlrm_factory.ranks.parcels import Parcel, Shape, width_of
from dlrm_factory.ranks.slices import Arranged

__all__ = ["Router"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class Router:
    """Cuts batches into parcels, for one plan."""

    def __init__(self, layout: Layout, declaration: DLRMDeclaration, *, as_given: bool = False) -> None:
        """``as_given``: weights cross as they are, without the means that a weighted model puts into them."""
        self._declaration = declaration
        self._as_given = as_given
        self._replicated = np.array(layout.replicated, dtype=np.int64)
        self._means = np.array(mean_features(layout), dtype=np.int64)
        self._ranks = [_RankRoute(part) for part in layout.ranks]

    def route(self, arranged: Arranged) -> Iterator[Parcel]:
        """One parcel a rank, the last rank's first: the leader's own can wait."""
        batch = arranged.batch
        rows = _Rows(batch, batch.weights if self._as_given else pooling_weights(batch, self._declaration))
        last = rows.count
        for rank in range(len(self._ranks) - 1, -1, -1):
            first = last - arranged.rows[rank]
            yield self._parcel(rows, self._ranks[rank], arranged, rank, first, last)
            last = first

    def _parcel(
        self, rows: _Rows, route: _RankRoute, arranged: Arranged, rank: int, first: int, last: int
    ) -> Parcel:
        batch, samples, spans = arranged.batch, arranged.samples[rank], arranged.spans[rank]
        ids = [rows.of(rows.values, route.whole, 0, rows.count)]
        weights = [] if rows.weights is None else [rows.of(rows.weights, route.whole, 0, rows.count)]
        lengths: list[Array] = [] if rows.one_each else [batch.lengths[route.whole]]
        if len(route.parts):
            values, factors, counts = rows.within(route.parts, route.starts, route.stops)
            ids.append(values)
            lengths.append(counts)
            if factors is not None:
                weights.append(factors)
        own = rows.of(rows.values, self._replicated, first, last)
        if rows.weights is not None:
            weights.append(rows.of(rows.weights, self._replicated, first, last))
        if not rows.one_each:
            lengths += [batch.lengths[features, first:last] for features in (self._replicated, self._means)]
        dense = batch.dense[first : first + samples]
        shape = Shape(
            ranks=len(self._ranks),
            rows=rows.count,
            own_rows=last - first,
            samples=samples,
            whole=len(route.whole),
            parts=len(route.parts),
            replicated=len(self._replicated),
            means=len(self._means),
            values=sum(part.size for part in ids),
            own_values=own.size,
            numbers=dense.shape[1],
            width=rows.width,
            one_each=int(rows.one_each),
            weighted=int(rows.weights is not None),
        )
        return Parcel(
            shape=shape,
            numbers=[
                *((part, np.int32) for part in (*ids, own)),
                *((part, np.float32) for part in weights),
                (dense, np.float32),
                (spans, np.int32),
                (np.array(arranged.rows), np.int32),
            ],
            lengths=lengths,
        )


def mean_features(layout: Layout) -> list[int]:
    """Features whose lengths the rank that divides by them has not got with their ids."""
    return sorted(set(layout.means) - set(layout.replicated))


class _RankRoute:
    """Features of one rank's streams: ``whole`` tables, and ``parts`` of tables, rows [starts, stops)."""

    def __init__(self, part: RankLayout) -> None:
        cut = [stream for stream in part.streams if not stream.whole]
        self.whole = np.array([stream.feature for stream in part.streams if stream.whole], dtype=np.int64)
        self.parts = np.array([stream.feature for stream in cut], dtype=np.int64)
        self.starts = np.array([stream.start for stream in cut], dtype=np.int64)
        self.stops = np.array([stream.stop for stream in cut], dtype=np.int64)


class _Rows:
    """The rows of a batch, to take features of."""

    def __init__(self, batch: FeatureBatch, weights: Float32 | None) -> None:
        self.count = len(batch)
        self.values = batch.values
        self.weights = weights
        self.one_each = batch.one_each or (
            batch.values.size == batch.lengths.size and bool((batch.lengths == 1).all())
        )
        self._lengths = batch.lengths
        self.width = 1 if self.one_each else width_of(int(batch.lengths.max(initial=0)))
        self._bounds: list[int] | None = None

    def of(self, array: Array, features: Array, first: int, last: int) -> Array:
        """The part of ``array`` (values or weights) that belongs to rows [first, last) of ``features``."""
        if self.one_each:
            return array.reshape(len(self._lengths), self.count)[features, first:last]
        if not len(features):
            return array[:0]
        spans = self._spans(features, first, last)
        return np.concatenate([array[start:stop] for start, stop in spans])

    def within(self, features: Array, starts: Array, stops: Array) -> tuple[Array, Array | None, Array]:
        """Ids of ``features`` in rows [starts, stops) of their tables, counted from there; weights; bag lengths."""
        values = self.of(self.values, features, 0, self.count).reshape(-1)
        lengths = self._lengths[features]
        per_feature = lengths.sum(axis=1, dtype=np.int64)
        local = values - np.repeat(starts, per_feature)
        is_here = (local >= 0) & (local < np.repeat(stops - starts, per_feature))
        bags = np.repeat(np.arange(lengths.size), lengths.reshape(-1))[is_here]
        counts = np.bincount(bags, minlength=lengths.size).reshape(lengths.shape)
        if self.weights is None:
            return local[is_here], None, counts
        return local[is_here], self.of(self.weights, features, 0, self.count).reshape(-1)[is_here], counts

    def _spans(self, features: Sequence[int] | Array, first: int, last: int) -> list[tuple[int, int]]:
        if self._bounds is None:
            self._bounds = [0, *np.cumsum(self._lengths.reshape(-1), dtype=np.int64).tolist()]
        bounds, count = self._bounds, self.count
        return [
            (bounds[feature * count + first], bounds[feature * count + last])
            for feature in np.asarray(features).tolist()
        ]
