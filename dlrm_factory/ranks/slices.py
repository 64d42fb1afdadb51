"""A batch in slices, one for each rank, and the bytes of a slice.

::

    dense    float32 [R, number of dense features]
    values   int32 [number of ids], feature-major: rows are below 2**31
    lengths  int32 [F, R]; not there if every bag holds one id
    weights  float32 [number of ids], if there are any
    spans    int32 [contexts, 2]

R is the slice's samples and, after them, the contexts that these share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, select_bags, split, with_contexts
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["Slice", "SliceShape", "check_batch", "cut"]

Bytes = npt.NDArray[np.uint8]

_WEIGHTED, _ONE_EACH = 1, 2
_FLOAT32, _INT32 = np.dtype(np.float32), np.dtype(np.int32)


@dataclass(frozen=True, kw_only=True)
class SliceShape:
    """Numbers that `Slice.read` needs beside the bytes. ``rows``: samples and contexts; ``flags``: its parts."""

    rows: int
    contexts: int
    values: int
    flags: int


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one rank scores.

    Fields:
        batch: samples, then the contexts that they share; only the samples' dense features are used.
        spans: int32 [contexts, 2], (start, stop) of the samples that each context belongs to.
    """

    batch: FeatureBatch
    spans: npt.NDArray[np.int32]

    @property
    def samples(self) -> int:
        return len(self.batch) - len(self.spans)

    @property
    def shape(self) -> SliceShape:
        batch = self.batch
        return SliceShape(
            rows=len(batch),
            contexts=len(self.spans),
            values=len(batch.values),
            flags=_WEIGHTED * (batch.weights is not None) | _ONE_EACH * batch.one_each,
        )

    @property
    def size(self) -> int:
        """Bytes that `write` takes."""
        batch = self.batch
        per_value = 4 if batch.weights is None else 8
        lengths = 0 if batch.one_each else 4 * batch.lengths.size
        return 4 * batch.dense.size + per_value * len(batch.values) + lengths + 8 * len(self.spans)

    def write(self, target: Bytes) -> None:
        """Into the first `size` bytes of ``target``, which starts at a multiple of 4."""
        batch, start = self.batch, 0
        parts: list[tuple[npt.NDArray[Any], np.dtype[Any]]] = [
            (batch.dense, _FLOAT32),
            (batch.values, _INT32),
        ]
        if not batch.one_each:
            parts.append((batch.lengths, _INT32))
        if batch.weights is not None:
            parts.append((batch.weights, _FLOAT32))
        for part, dtype in [*parts, (self.spans, _INT32)]:
            stop = start + 4 * part.size
            target[start:stop].view(dtype)[:] = part.reshape(-1)
            start = stop

    @classmethod
    def read(cls, source: Bytes, shape: SliceShape, declaration: DLRMDeclaration) -> Slice:
        """The slice that was written; parts of it lie in ``source``."""
        rows, features = shape.rows, len(declaration.sparse_features)
        one_each, weighted = bool(shape.flags & _ONE_EACH), bool(shape.flags & _WEIGHTED)
        start = 0

        def take(count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
            nonlocal start
            part: npt.NDArray[Any] = source[start : start + 4 * count].view(dtype)
            start += 4 * count
            return part

        numbers = len(declaration.dense_features)
        dense = take(rows * numbers, _FLOAT32).reshape(rows, numbers)
        values = take(shape.values, _INT32).astype(np.int64)
        lengths = np.ones(features * rows, np.int32) if one_each else take(features * rows, _INT32)
        weights = take(shape.values, _FLOAT32) if weighted else None
        batch = FeatureBatch(
            dense=dense,
            lengths=lengths.reshape(features, rows),
            values=values,
            weights=weights,
            one_each=one_each,
            in_range=True,
        )
        return cls(batch=batch, spans=take(2 * shape.contexts, _INT32).reshape(-1, 2))


def check_batch(batch: FeatureBatch, declaration: DLRMDeclaration) -> None:
    """ValueError for a batch that the declared model cannot take: it would stop the whole group in its middle."""
    features = declaration.sparse_features
    if batch.dense.shape[1:] != (len(declaration.dense_features),):
        raise ValueError(f"dense has shape {batch.dense.shape}, not [B, {len(declaration.dense_features)}]")
    if batch.lengths.shape != (len(features), len(batch)):
        raise ValueError(f"lengths has shape {batch.lengths.shape}, not [{len(features)}, {len(batch)}]")
    counts = batch.lengths.sum(axis=1, dtype=np.int64)
    if len(batch.values) != counts.sum():
        raise ValueError(f"{len(batch.values)} ids are given, but lengths sum up to {counts.sum()}")
    if batch.weights is not None and not declaration.is_weighted:
        raise ValueError("weights are given to a model without weighted features")
    if batch.in_range or not len(batch.values):
        return
    rows = np.repeat([declaration.table(feature.table).num_embeddings for feature in features], counts)
    wrong = (batch.values < 0) | (batch.values >= rows)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(f"id {batch.values[place]} is outside its table of {rows[place]} rows")


def cut(batch: FeatureBatch, shared: SharedContext | None, ranks: int) -> Iterator[Slice]:
    """The slice of each of ``ranks`` ranks: equally many samples, the last ones fewer or none. B is at least 1."""
    size = -(-len(batch) // ranks)
    pieces = split(batch, size) if size < len(batch) else iter([batch])
    cuts = 0
    for piece in pieces:
        yield _sharing(piece, cuts * size, shared)
        cuts += 1
    for _ in range(cuts, ranks):
        yield Slice(batch=_nothing(batch), spans=_NO_SPANS)


_NO_SPANS = np.empty((0, 2), dtype=np.int32)


def _sharing(piece: FeatureBatch, first: int, shared: SharedContext | None) -> Slice:
    """``piece``, whose samples are from ``first`` on those of the batch, with the contexts that they share."""
    if shared is None:
        return Slice(batch=piece, spans=_NO_SPANS)
    spans = np.clip(np.array(shared.spans, dtype=np.int32).reshape(-1, 2) - first, 0, len(piece))
    kept = np.flatnonzero(spans[:, 0] < spans[:, 1])
    if not len(kept):
        return Slice(batch=piece, spans=_NO_SPANS)
    bags = shared.bags
    if len(kept) < len(bags):
        source = np.tile(kept, (len(bags.lengths), 1))
        bags = select_bags(bags, source, dense=bags.dense[kept])
    whole = SharedContext(bags=bags, spans=[])
    return Slice(batch=with_contexts(piece, whole), spans=spans[kept])


def _nothing(batch: FeatureBatch) -> FeatureBatch:
    return FeatureBatch(
        dense=batch.dense[:0],
        lengths=batch.lengths[:, :0],
        values=batch.values[:0],
        weights=None if batch.weights is None else batch.weights[:0],
        one_each=True,
        in_range=True,
    )
