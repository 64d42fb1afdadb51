"""A context looked up once gives the scores of a context sent with every sample."""

from __future__ import annotations

import numpy as np
import pytest
from support.batches import random_batch, random_state
from support.sharding import ARCHITECTURES, DTYPES, declared

from dlrm_factory.batch import FeatureBatch, SharedContext, select_bags, tile_context
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.scorer import Scorer


def without(batch: FeatureBatch, features: list[int]) -> FeatureBatch:
    """``batch`` with empty bags for ``features``."""
    lengths = batch.lengths.copy()
    lengths[features] = 0
    kept = np.repeat(np.isin(np.arange(len(lengths)), features, invert=True), batch.lengths.sum(axis=1))
    return FeatureBatch(dense=batch.dense, lengths=lengths, values=batch.values[kept])


@pytest.mark.parametrize("mode", ["float", "quantized"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_shared_equals_tiled(mode: str, architecture: str, pooling: str) -> None:
    declaration = declared("auto", pooling, DTYPES[4], architecture)
    scorer = Scorer(DLRMFactory(declaration).build(mode=mode, weights=random_state(declaration)))
    samples = without(random_batch(declaration, 9, seed=1), [0, 2])
    contexts = without(random_batch(declaration, 3, seed=2), [1])
    # Two requests with a context, one without, one whose context belongs to a single sample.
    shared = SharedContext(bags=contexts, spans=[(0, 4), (6, 8), (8, 9)])
    tiled = tile_context(samples, shared)
    assert tiled.lengths[[0, 2]].sum() > contexts.lengths.sum()
    found = scorer.logits(samples, shared)
    np.testing.assert_allclose(found, scorer.logits(tiled), rtol=0, atol=1e-6)
    assert np.abs(found - scorer.logits(samples)).max() > 1e-3


def test_nothing_shared_and_no_samples() -> None:
    declaration = declared("auto", "sum", DTYPES[0])
    scorer = Scorer(DLRMFactory(declaration).build(weights=random_state(declaration)))
    empty = random_batch(declaration, 0)
    shared = SharedContext(bags=random_batch(declaration, 1), spans=[(0, 0)])
    assert scorer.logits(empty, shared).shape == (0,)
    batch = random_batch(declaration, 2)
    same = select_bags(batch, np.tile([0, 1], (3, 1)), dense=batch.dense)
    np.testing.assert_array_equal(scorer.logits(same), scorer.logits(batch))
