from __future__ import annotations

import numpy as np
import pytest
import torch
from support.batches import random_batch, random_state
from support.sharding import DTYPES, declared, mixed_shardings

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.compiled import DirectLookup
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import SealedWeights, seal_weights


def load(declaration, folder):
    save_checkpoint(folder / "c.safetensors", declaration, random_state(declaration))
    seal_weights(open_checkpoint(folder / "c.safetensors"), folder / "sealed")
    return Scorer.load(folder / "sealed")


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_the_lookup_pools_as_the_sharded_module_does(tmp_path, dtypes, pooling):
    scorer = load(declared("auto", pooling, dtypes), tmp_path)
    batch = random_batch(scorer.declaration, 9)
    direct = scorer.look_up(batch).pooled
    sharded = Scorer(scorer.built).look_up(batch).pooled
    assert direct.shape == (9, 24)
    assert torch.allclose(direct, sharded, atol=1e-6)


def test_features_that_share_a_table_out_of_its_order(tmp_path):
    # The model orders features by table, the declaration puts the shared one last.
    scorer = load(mixed_shardings(), tmp_path)
    batch = random_batch(scorer.declaration, 5)
    assert torch.allclose(scorer.look_up(batch).pooled, Scorer(scorer.built).look_up(batch).pooled, atol=1e-6)
    finished = scorer.interact(torch.from_numpy(batch.dense), scorer.look_up(batch))
    assert np.abs(finished - scorer.reference_outputs(batch)).max() < 1e-5


def test_pooled_parts_add_up(tmp_path):
    scorer = load(declared("auto", "sum", DTYPES[2]), tmp_path)
    batch = random_batch(scorer.declaration, 1, longest=1, seed=3)
    whole = FeatureBatch(dense=batch.dense, lengths=np.ones((3, 1), np.int32), values=np.array([5, 6, 7]))
    only_user = FeatureBatch(
        dense=batch.dense, lengths=np.array([[1], [0], [0]], np.int32), values=np.array([5])
    )
    only_item = FeatureBatch(
        dense=batch.dense, lengths=np.array([[0], [1], [1]], np.int32), values=np.array([6, 7])
    )
    assert torch.allclose(
        scorer.look_up(only_user).pooled + scorer.look_up(only_item).pooled, scorer.look_up(whole).pooled
    )


@pytest.mark.parametrize("row", [-1, 1000, 2**40])
def test_an_id_outside_its_table_stops(tmp_path, row):
    scorer = load(declared("auto", "sum", DTYPES[2]), tmp_path)
    batch = FeatureBatch(
        dense=np.zeros((1, 2), np.float32), lengths=np.ones((3, 1), np.int32), values=np.array([row, 0, 0])
    )
    with pytest.raises(RuntimeError):
        scorer.look_up(batch)


def test_one_hot_batches_grow_and_shrink(tmp_path):
    scorer = load(declared("auto", "sum", DTYPES[2]), tmp_path)
    for size in (1, 7, 300, 2):
        batch = FeatureBatch(
            dense=np.zeros((size, 2), np.float32),
            lengths=np.ones((3, size), np.int32),
            values=np.arange(3 * size) % 50,
        )
        assert torch.allclose(
            scorer.look_up(batch).pooled, Scorer(scorer.built).look_up(batch).pooled, atol=1e-6
        )


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_pooled_vectors_in_bfloat16_are_the_rounded_ones(tmp_path, dtypes, pooling):
    scorer = load(declared("auto", pooling, dtypes), tmp_path)
    lookup = DirectLookup(scorer.declaration, SealedWeights(tmp_path / "sealed").tables)
    batch = random_batch(scorer.declaration, 9)
    exact, rounded = lookup.look_up(batch).pooled, lookup.look_up(batch, torch.bfloat16).pooled
    assert rounded.dtype == torch.bfloat16
    # Half a unit in the last of 8 binary places; the kernel rounds ties up.
    assert ((rounded.float() - exact).abs() <= exact.abs() * 2**-8).all()
