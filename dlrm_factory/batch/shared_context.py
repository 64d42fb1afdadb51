"""Bags that many samples share: one user's features beside some hundred candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.feature_batch import FeatureBatch, concatenate, cut, select_bags, split

__all__ = [
    "Part",
    "SharedContext",
    "join_contexts",
    "part_rankings",
    "shared_rows",
    "tile_context",
    "with_contexts",
    "without_empty_contexts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedContext:
    """Bags that are looked up once, for all the samples they belong to.

    A feature with ids in a context has an empty bag in each of its samples. Samples carry all their dense features
    themselves: one whose number is the context's in each of them is known to be shared.

    Fields:
        bags: R contexts.
        spans: R pairs (start, stop): the samples of the batch that the context belongs to.
    """

    bags: FeatureBatch
    spans: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some samples of a batch, in a batch of their own.

    Fields:
        rows: places of the samples in the whole batch, int64 [B].
        samples: B samples.
        shared: their contexts; None if they have none.
    """

    rows: npt.NDArray[np.int64]
    samples: FeatureBatch
    shared: SharedContext | None

    @property
    def context(self) -> FeatureBatch | None:
        """The one context that all the samples share; None if they do not share one."""
        if self.shared is None or list(self.shared.spans) != [(0, len(self.samples))]:
            return None
        return self.shared.bags


def join_contexts(
    batches: Sequence[FeatureBatch], contexts: Sequence[FeatureBatch | None]
) -> SharedContext | None:
    """The contexts of ``batches`` once these are concatenated; None if none has one.

    ``contexts``: for each batch the one sample whose bags all its samples share, or None.
    """
    stops = np.cumsum([len(batch) for batch in batches]).tolist()
    found = [
        (context, (stop - len(batch), stop))
        for batch, context, stop in zip(batches, contexts, stops, strict=True)
        if context is not None and len(batch)
    ]
    if not found:
        return None
    return SharedContext(
        bags=concatenate([context for context, _ in found]), spans=[span for _, span in found]
    )


def tile_context(batch: FeatureBatch, shared: SharedContext) -> FeatureBatch:
    """``batch`` with each sample's shared bags in the sample itself: the same scores, with nothing shared."""
    size = len(batch)
    source = np.tile(np.arange(size), (len(batch.lengths), 1))
    for context, (start, stop) in enumerate(shared.spans):
        is_shared: npt.NDArray[np.bool_] = shared.bags.lengths[:, context] > 0
        source[is_shared, start:stop] = size + context
    return select_bags(concatenate([batch, shared.bags]), source, dense=batch.dense)


def with_contexts(batch: FeatureBatch, shared: SharedContext) -> FeatureBatch:
    """Samples to look up: the B of ``batch``, then the R contexts, each of these once."""
    return concatenate([batch, shared.bags])


def without_empty_contexts(shared: SharedContext | None) -> SharedContext | None:
    """The contexts that have ids, for whoever looks them up and does nothing else; None if there is none."""
    if shared is None:
        return None
    has_ids = (shared.bags.lengths.sum(axis=0) > 0).tolist()
    if all(has_ids):
        return shared
    if not any(has_ids):
        return None
    bags = concatenate([each for each, kept in zip(split(shared.bags, 1), has_ids, strict=True) if kept])
    return SharedContext(
        bags=bags, spans=[span for span, kept in zip(shared.spans, has_ids, strict=True) if kept]
    )


def shared_rows(
    batch: FeatureBatch, shared: SharedContext, *, dense: Sequence[int], sparse: Sequence[int]
) -> npt.NDArray[np.int64]:
    """First sample of each sample's ranking, if the ranking's samples share all the features, else the sample itself.

    Args:
        dense, sparse: places of the features.

    Returns:
        int64 [B], not falling.
    """
    rows = np.arange(len(batch))
    for context, (start, stop) in enumerate(shared.spans):
        numbers = batch.dense[start:stop, dense] == shared.bags.dense[context, dense]
        if numbers.all() and not batch.lengths[sparse, start:stop].any():
            rows[start:stop] = start
    return rows


def part_rankings(
    batch: FeatureBatch, shared: SharedContext, *, apart: Sequence[tuple[int, int]]
) -> list[Part]:
    """Each ranking whose span is in ``apart`` in a part of its own, all other samples in one. B is at least 1."""
    if not apart or list(apart) == [(0, len(batch))]:
        return [Part(rows=np.arange(len(batch)), samples=batch, shared=shared)]
    bounds = sorted({0, len(batch), *chain.from_iterable(shared.spans)})
    pieces = list(zip(pairwise(bounds), cut(batch, bounds), strict=True))
    contexts = dict(zip(shared.spans, split(shared.bags, 1), strict=True))
    groups = [[piece] for piece in pieces if piece[0] in apart]
    groups.append([piece for piece in pieces if piece[0] not in apart])
    return [_join(group, contexts) for group in groups if group]


def _join(
    pieces: Sequence[tuple[tuple[int, int], FeatureBatch]], contexts: Mapping[tuple[int, int], FeatureBatch]
) -> Part:
    """``pieces``, each with its span in the whole batch, and those of ``contexts`` that belong to one."""
    batches = [samples for _, samples in pieces]
    return Part(
        rows=np.concatenate([np.arange(*span) for span, _ in pieces]),
        samples=concatenate(batches),
        shared=join_contexts(batches, [contexts.get(span) for span, _ in pieces]),
    )
