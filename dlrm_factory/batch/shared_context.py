"""Bags that many samples share: one user's features beside some hundred candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.feature_batch import FeatureBatch, concatenate, select_bags

__all__ = ["SharedContext", "join_contexts", "tile_context", "with_contexts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedContext:
    """Bags that are looked up once, for all the samples they belong to.

    A feature with ids in a context has an empty bag in each of its samples.

    Fields:
        bags: R contexts. The dense part of contexts is not used: samples carry all their dense features themselves.
        spans: R pairs (start, stop): the samples of the batch that the context belongs to.
    """

    bags: FeatureBatch
    spans: Sequence[tuple[int, int]]


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
