"""Random batches that compiled code is tried out with."""

from __future__ import annotations

import numpy as np

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["probe_batches"]

_PROBE_STEPS = 20  # ids of the longest sequence


def probe_batches(declaration: DLRMDeclaration) -> list[FeatureBatch]:
    """Batches of 1 to 200 samples with random dense numbers and bags of 0 to 3 rows, always the same."""
    random = np.random.default_rng(0)
    return [_probe_batch(declaration, size, random) for size in (1, 7, 16, 200)]


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
