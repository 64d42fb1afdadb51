"""Arranged rows → what each rank is sent: the ids of just the rows that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.batch.jagged import pooling_weights
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.ranks.layout import Layout, RankLayout
from dlrm_factory.ranks.parcels import (
    ONE_EACH,
    SAMPLES,
    SEQUENCES,
    WEIGHTED,
    Parcel,
    Shape,
    holder_dtype,
    width_of,
)
from dlrm_factory.ranks.slices import Arranged

__all__ = ["Router"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

# Kept at once; each is a set of features that samples, or contexts, have ids of.
MAX_SELECTIONS = 64
_NO_DENSE = np.empty((0, 0), dtype=np.float32)
_NO_SPANS = np.empty((0, 2), dtype=np.int32)


class Router:
    """Cuts rows into parcels, for one plan."""

    def __init__(self, layout: Layout, declaration: DLRMDeclaration, *, as_given: bool = False) -> None:
        """``as_given``: weights cross as they are, without the means that a weighted model puts into them."""
        self._layout = layout
        self._declaration = declaration
        self._as_given = as_given
        self._routes: dict[bytes, _Route] = {b"": _Route(layout, has_sequences=bool(layout.sequences))}

    def route(self, arranged: Arranged) -> Iterator[Parcel]:
        """One parcel a rank, the last rank's first: the leader's own can wait."""
        batch, dense = arranged.batch, arranged.batch.dense if arranged.spans is not None else _NO_DENSE
        weights = batch.weights if self._as_given else self._weights(batch)
        return self._parcels(_Rows(batch, batch.lengths, weights), self._routes[b""], arranged, dense, b"")

    def route_used(self, arranged: Arranged) -> Iterator[Parcel]:
        """`route`, leaving out features without an id in any row: nothing of them needs to cross."""
        batch, dense = arranged.batch, arranged.batch.dense if arranged.spans is not None else _NO_DENSE
        used = batch.lengths.any(axis=1)
        features = np.packbits(used).tobytes()
        if features not in self._routes:
            if used.all() or len(self._routes) > MAX_SELECTIONS:
                return self.route(arranged)
            layout = self._layout.only(np.flatnonzero(used).tolist())
            self._routes[features] = _Route(layout, has_sequences=bool(self._layout.sequences))
        weights = self._weights(batch)
        rows = _Rows(batch, batch.lengths[used], weights)
        return self._parcels(rows, self._routes[features], arranged, dense, features)

    def _weights(self, batch: FeatureBatch) -> Float32 | None:
        return pooling_weights(batch, self._declaration, self._declaration.sparse_features)

    def _parcels(
        self, rows: _Rows, route: _Route, arranged: Arranged, dense: Array, features: bytes
    ) -> Iterator[Parcel]:
        last, counts = rows.count, np.array(arranged.rows)
        for rank in range(len(route.ranks) - 1, -1, -1):
            first = last - arranged.rows[rank]
            spans = _NO_SPANS if arranged.spans is None else arranged.spans[rank]
            own = (dense[first:last], spans, counts)
            yield _parcel(rows, route, rank, slice(first, last), own, features)
            last = first


def _parcel(
    rows: _Rows,
    route: _Route,
    place: int,
    own: slice,
    beside: tuple[Array, Array, Array],
    features: bytes,
) -> Parcel:
    """Parcel of the rank at ``place``.

    ``own``: its rows. ``beside``: their dense features and spans, and the rows of each slice.
    """
    dense, spans, counts_of_rows = beside
    rank = route.ranks[place]
    everything = slice(0, rows.count)
    ids = [rows.of(rows.values, rank.whole, everything)]
    weights = [] if rows.weights is None else [rows.of(rows.weights, rank.whole, everything)]
    lengths: list[Array] = [] if rows.one_each else [rows.lengths[rank.whole]]
    if len(rank.parts):
        values, factors, counts = rows.within(rank.parts, rank.starts, rank.stops)
        ids.append(values)
        lengths.append(counts)
        if factors is not None:
            weights.append(factors)
    own_ids = rows.of(rows.values, route.replicated, own)
    if rows.weights is not None:
        weights.append(rows.of(rows.weights, route.replicated, own))
    if not rows.one_each:
        lengths += [rows.lengths[which, own] for which in (route.replicated, route.apart)]
    samples = len(dense) == own.stop - own.start
    flags = ONE_EACH * rows.one_each | WEIGHTED * (rows.weights is not None) | SAMPLES * samples
    last, crossing = features, 0
    if route.has_sequences:
        holders, crossing = route.steps(rows, place, own)
        flags |= SEQUENCES
        counts_of_rows = np.append(counts_of_rows, holders.size)
        last += holders.tobytes()
    shape = Shape(
        values=sum(part.size for part in ids),
        own_values=own_ids.size,
        own_rows=own.stop - own.start,
        numbers=dense.shape[1],
        contexts=len(spans),
        whole=len(rank.whole),
        parts=len(rank.parts),
        replicated=len(route.replicated),
        apart=len(route.apart),
        ranks=len(route.ranks),
        features=len(features),
        width=rows.width,
        flags=flags,
    )
    numbers: list[tuple[Array, type[np.int32] | type[np.float32]]] = [
        (counts_of_rows, np.int32),
        *((part, np.int32) for part in (*ids, own_ids)),
        *((part, np.float32) for part in (*weights, dense)),
        (spans, np.int32),
    ]
    return Parcel(shape=shape, numbers=numbers, lengths=lengths, last=last, crossing=crossing)


class _Route:
    """Features by where their ids go. ``has_sequences``: the model has."""

    def __init__(self, layout: Layout, *, has_sequences: bool) -> None:
        self.replicated = np.array(layout.replicated, dtype=np.int64)
        self.apart = np.array(layout.lengths_apart, dtype=np.int64)
        self.ranks = [_RankRoute(part) for part in layout.ranks]
        self.has_sequences = has_sequences
        self._sequences = [
            _SequenceRoute(layout, feature)
            for feature in layout.sequences
            if feature not in layout.replicated
        ]

    def steps(self, rows: _Rows, rank: int, own: slice) -> tuple[Array, int]:
        """Of the own rows: which part of its table holds each id's row, feature after feature; numbers that cross."""
        dtype = holder_dtype(len(self.ranks))
        held, crossing = [np.zeros(0, dtype=dtype)], 0
        for sequence in self._sequences:
            ids = rows.of(rows.values, sequence.feature, own).reshape(-1)
            holders = np.zeros(ids.size, dtype=dtype)
            for start in sequence.parts[1:]:  # of a few parts a tenth of searchsorted's time
                holders += ids >= start
            crossing += int(np.bincount(holders, minlength=len(sequence.parts)) @ sequence.away[rank])
            if len(sequence.parts) > 1:
                held.append(holders)
        return np.concatenate(held), crossing


class _SequenceRoute:
    """A sequence feature, the first row of each of its table's ``parts``, and what of them is not on a rank.

    ``away``: int64 [ranks, parts], columns that other ranks have.
    """

    def __init__(self, layout: Layout, feature: int) -> None:
        self.feature = np.array([feature])
        parts = layout.parts_of(feature)
        self.parts = np.array(parts)
        held = np.zeros((len(layout.ranks), len(parts)), dtype=np.int64)
        for rank, part in enumerate(layout.ranks):
            for block in part.sequences:
                if block.feature == feature:
                    held[rank, parts.index(part.streams[block.stream].start)] += block.columns
        self.away = held.sum(axis=0) - held


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

    def __init__(self, batch: FeatureBatch, lengths: Array, weights: Float32 | None) -> None:
        """``lengths``: of the features with ids, and maybe others."""
        self.count = len(batch)
        self.values = batch.values
        self.weights = weights
        self.lengths = lengths
        self.one_each = batch.one_each or (batch.values.size == lengths.size and bool((lengths == 1).all()))
        self.width = 1 if self.one_each else width_of(int(lengths.max(initial=0)))
        self._bounds: list[int] | None = None

    def of(self, array: Array, features: Array, rows: slice) -> Array:
        """The part of ``array`` (values or weights) that belongs to ``rows`` of ``features``."""
        if self.one_each:
            return array.reshape(len(self.lengths), self.count)[features, rows]
        if not len(features):
            return array[:0]
        bounds, count = self._value_bounds(), self.count
        return np.concatenate(
            [
                array[bounds[feature * count + rows.start] : bounds[feature * count + rows.stop]]
                for feature in features.tolist()
            ]
        )

    def within(self, features: Array, starts: Array, stops: Array) -> tuple[Array, Array | None, Array]:
        """Ids of ``features`` in rows [starts, stops) of their tables, counted from there; weights; bag lengths."""
        everything = slice(0, self.count)
        values = self.of(self.values, features, everything).reshape(-1)
        lengths = self.lengths[features]
        per_feature = lengths.sum(axis=1, dtype=np.int64)
        local = values - np.repeat(starts, per_feature)
        is_here = (local >= 0) & (local < np.repeat(stops - starts, per_feature))
        bags = np.repeat(np.arange(lengths.size), lengths.reshape(-1))[is_here]
        counts = np.bincount(bags, minlength=lengths.size).reshape(lengths.shape)
        if self.weights is None:
            return local[is_here], None, counts
        return local[is_here], self.of(self.weights, features, everything).reshape(-1)[is_here], counts

    def _value_bounds(self) -> list[int]:
        """Place of each bag's first value, and the end."""
        if self._bounds is None:
            self._bounds = [0, *np.cumsum(self.lengths.reshape(-1), dtype=np.int64).tolist()]
        return self._bounds
