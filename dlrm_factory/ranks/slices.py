"""A batch's samples in slices, one for each rank, with the contexts that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, select_bags, split
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["Arranged", "arrange", "check_batch", "cut", "even_sizes"]

Int32 = npt.NDArray[np.int32]
_NO_SPANS: Int32 = np.empty((0, 2), dtype=np.int32)


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """Rows that the ranks look up, those of the first rank's slice first.

    Fields:
        batch: samples, or the contexts that these share.
        rows: of each rank's slice.
        spans: beside samples, of each slice, int32 [contexts, 2]: (start, stop) of the samples of each of its contexts.
    """

    batch: FeatureBatch
    rows: list[int]
    spans: list[Int32] | None = None


def even_sizes(samples: int, ranks: int) -> list[int]:
    """Samples of each of ``ranks`` ranks: equally many, the last ones fewer or none."""
    size = -(-samples // ranks)
    return [max(0, min(size, samples - rank * size)) for rank in range(ranks)]


def arrange(
    batch: FeatureBatch, shared: SharedContext | None, sizes: Sequence[int]
) -> tuple[Arranged, Arranged | None]:
    """Slices of ``sizes`` samples, which add up to those of ``batch``, at least 1; and the slices' contexts.

    A context is among those of each slice that needs it.
    """
    if shared is None:
        return Arranged(batch=batch, rows=list(sizes), spans=[_NO_SPANS] * len(sizes)), None
    starts = np.cumsum(sizes) - sizes
    found = [_narrow(shared, int(start), size) for start, size in zip(starts, sizes, strict=True)]
    spans = [_NO_SPANS if own is None else np.array(own.spans, dtype=np.int32) for own in found]
    contexts = Arranged(
        batch=concatenate([own.bags for own in found if own is not None] or [shared.bags]),
        rows=[len(each) for each in spans],
    )
    samples = Arranged(batch=batch, rows=list(sizes), spans=spans)
    return samples, contexts if sum(contexts.rows) else None


def cut(
    batch: FeatureBatch, shared: SharedContext | None, size: int
) -> Iterator[tuple[FeatureBatch, SharedContext | None]]:
    """``batch`` in pieces of ``size`` samples, the last may have fewer; a context goes to each that needs it."""
    pieces = split(batch, size) if size < len(batch) else iter([batch])
    for place, piece in enumerate(pieces):
        yield piece, None if shared is None else _narrow(shared, place * size, len(piece))


def _narrow(shared: SharedContext, first: int, size: int) -> SharedContext | None:
    """The contexts that ``size`` samples from ``first`` on share."""
    spans = np.clip(np.array(shared.spans).reshape(-1, 2) - first, 0, size)
    kept = np.flatnonzero(spans[:, 0] < spans[:, 1])
    if not len(kept):
        return None
    bags = shared.bags
    if len(kept) < len(bags):
        source = np.tile(kept, (len(bags.lengths), 1))
        bags = select_bags(bags, source, dense=bags.dense[kept])
    return SharedContext(bags=bags, spans=[(int(start), int(stop)) for start, stop in spans[kept]])


def check_batch(batch: FeatureBatch, declaration: DLRMDeclaration) -> None:
    """ValueError for a batch that the declared model cannot take: it would stop the whole group in its middle."""
    features = declaration.sparse_features
    if batch.dense.shape[1:] != (len(declaration.dense_features),):
        raise ValueError(f"dense has shape {batch.dense.shape}, not [B, {len(declaration.dense_features)}]")
    if batch.lengths.shape != (len(features), len(batch)):
        raise ValueError(f"lengths has shape {batch.lengths.shape}, not [{len(features)}, {len(batch)}]")
    ids = batch.lengths.size if batch.one_each else int(batch.lengths.sum())
    if len(batch.values) != ids:
        raise ValueError(f"{len(batch.values)} ids are given, but lengths sum up to {ids}")
    if batch.weights is not None and not declaration.is_weighted:
        raise ValueError("weights are given to a model without weighted features")
    if batch.in_range or not len(batch.values):
        return
    counts = batch.lengths.sum(axis=1, dtype=np.int64)
    rows = np.repeat(
        [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features], counts
    )
    wrong = (batch.values < 0) | (batch.values >= rows)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(f"id {batch.values[place]} is outside its table of {rows[place]} rows")
