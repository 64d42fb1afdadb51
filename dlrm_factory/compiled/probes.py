"""Random batches, and a ranking, that the fast path is tried out with."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, cut
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["probe_batches", "probe_ranking"]

_PROBE_STEPS = 20  # ids of the longest sequence


def probe_batches(declaration: DLRMDeclaration) -> list[FeatureBatch]:
    """Batches of 1 to 200 samples with random dense numbers and bags of 0 to 3 rows, always the same."""
    random = np.random.default_rng(0)
    return [_probe_batch(declaration, size, random) for size in (1, 7, 16, 200)]


def probe_ranking(declaration: DLRMDeclaration) -> tuple[FeatureBatch, SharedContext]:
    """150 candidates whose context has all dense numbers and every other sparse feature; always the same."""
    size, random = 150, np.random.default_rng(0)
    one, samples = cut(_probe_batch(declaration, 1 + size, random), [0, 1, 1 + size])
    is_shared = np.arange(len(declaration.sparse_features)) % 2 == 1
    dense = np.repeat(one.dense, size, axis=0)
    candidates = msgspec.structs.replace(_only(samples, ~is_shared), dense=dense)
    return candidates, SharedContext(bags=_only(one, is_shared), spans=[(0, size)])


def _only(batch: FeatureBatch, is_kept: npt.NDArray[np.bool_]) -> FeatureBatch:
    """``batch`` with empty bags for all other features."""
    kept = np.repeat(is_kept, batch.lengths.sum(axis=1))
    return FeatureBatch(
        dense=batch.dense,
        lengths=batch.lengths * is_kept[:, None].astype(np.int32),
        values=batch.values[kept],
    )


def _probe_batch(declaration: DLRMDeclaration, size: int, random: np.random.Generator) -> FeatureBatch:
    lengths = random.integers(0, 4, size=(len(declaration.sparse_features), size)).astype(np.int32)
    for feature in declaration.sequence_features:
        place = declaration.sparse_names.index(feature.name)
        lengths[place] = random.integers(0, min(feature.max_length, _PROBE_STEPS) + 1, size=size)
    rows = [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features]
    values = [random.integers(0, n, size=int(of.sum())) for n, of in zip(rows, lengths, strict=True)]
    return FeatureBatch(
        dense=random.normal(size=(size, len(declaration.dense_features))).astype(np.float32),
        lengths=lengths,
        values=np.concatenate(values).astype(np.int64),
    )
