from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import random_batch, random_state
from support.depth import examples
from support.sharding import DTYPES, declared

from dlrm_factory.batch import FeatureBatch, concatenate
from dlrm_factory.config import ShardingOptions, tiny
from dlrm_factory.errors import PlanError, WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.weights.rows import RandomRows


@pytest.fixture(scope="module")
def scorer():
    declaration = declared("auto", "mean", DTYPES[4])
    return Scorer(DLRMFactory(declaration).build(weights=random_state(declaration)))


@settings(max_examples=examples(25))
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_batch_of_n_equals_n_singles(scorer, sizes, seed):
    parts = [random_batch(scorer.declaration, size, seed=seed + i) for i, size in enumerate(sizes)]
    together = scorer.logits(concatenate(parts))
    alone = np.concatenate([scorer.logits(part) for part in parts])
    assert together.shape == (sum(sizes),)
    assert np.allclose(together, alone, rtol=0, atol=1e-5)


def test_an_empty_batch_has_no_scores(scorer):
    assert scorer.logits(random_batch(scorer.declaration, 0)).shape == (0,)


def test_a_score_by_hand():
    # Every weight zero but the last bias: the logit is that bias, whatever the sample.
    declaration = tiny()
    state = {key: torch.zeros_like(value) for key, value in random_state(declaration).items()}
    state["over_arch.model.1.bias"][:] = 0.5
    scorer = Scorer(DLRMFactory(declaration).build(weights=state))
    logits = scorer.logits(random_batch(declaration, 3))
    assert logits.tolist() == [0.5, 0.5, 0.5]
    assert probabilities(logits) == pytest.approx([0.6224593] * 3)


def test_probabilities_do_not_overflow():
    found = probabilities(np.array([-1e30, -100, 0, 100, 1e30], dtype=np.float32))
    assert found.tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_random_weights_follow_the_seed_not_the_sharding():
    batch = random_batch(tiny(), 4)
    by_sharding = [
        Scorer(DLRMFactory(declared(sharding, "sum", DTYPES[0])).build()).logits(batch)
        for sharding in ("table_wise", "row_wise", "column_wise")
    ]
    assert all(np.allclose(by_sharding[0], other, atol=1e-5) for other in by_sharding)
    reseeded = msgspec.structs.replace(tiny(), training=msgspec.structs.replace(tiny().training, seed=2))
    assert not np.allclose(by_sharding[0], Scorer(DLRMFactory(reseeded).build()).logits(batch), atol=1e-5)


def test_random_rows_do_not_depend_on_the_range_asked_for():
    big = msgspec.structs.replace(tiny().tables[0], num_embeddings=150_000)
    declaration = msgspec.structs.replace(tiny(), tables=[big, *tiny().tables[1:]])
    rows = RandomRows(declaration, seed=3)
    whole = rows.table_rows("t_user_id", 0, 150_000)
    assert whole.shape == (150_000, 8)
    assert torch.equal(rows.table_rows("t_user_id", 65_000, 140_000), whole[65_000:140_000])
    assert whole.abs().max() <= 150_000**-0.5


def test_an_id_past_the_table_stops_instead_of_reading_row_0():
    declaration = declared("table_wise", "sum", DTYPES[2])
    scorer = Scorer(DLRMFactory(declaration).build())
    batch = FeatureBatch(
        dense=np.zeros((1, 2), np.float32),
        lengths=np.ones((3, 1), np.int32),
        values=np.array([1000, 0, 0], np.int64),
    )
    with pytest.raises(RuntimeError):
        scorer.logits(batch)


def test_sealed_weights_cannot_be_trained(tmp_path):
    from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
    from dlrm_factory.weights.sealed import seal_weights

    path = tmp_path / "c.safetensors"
    save_checkpoint(path, tiny(), random_state(tiny()))
    seal_weights(open_checkpoint(path), tmp_path / "sealed")
    with pytest.raises(WeightsError, match="build a float model from a checkpoint"):
        DLRMFactory(tiny()).build(mode="float", weights=Path(tmp_path / "sealed"))


def test_cuda_without_a_gpu():
    if torch.cuda.is_available():
        pytest.fail("this test is for machines without CUDA; run it there")
    with pytest.raises(PlanError, match="torch sees no CUDA device"):
        DLRMFactory(tiny()).build(device="cuda")


def test_a_declared_world_that_does_not_run():
    declaration = msgspec.structs.replace(tiny(), sharding=ShardingOptions(world_size=4))
    with pytest.raises(PlanError, match="world_size is 4 but 1 process runs"):
        DLRMFactory(declaration).build()


def test_tables_that_do_not_fit_are_refused_at_build():
    with pytest.raises(PlanError, match="do not fit"):
        DLRMFactory(tiny()).build(memory=10_000)
