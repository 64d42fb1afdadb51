from __future__ import annotations

import pytest
import torch
from support.batches import random_batch

from dlrm_factory.batch import pad_rows, pad_samples
from dlrm_factory.config import tiny


@pytest.mark.parametrize(("size", "padded"), [(0, 0), (1, 4), (3, 4), (4, 4), (5, 8), (512, 512)])
def test_spare_samples_come_last_and_are_empty(size, padded):
    batch = random_batch(tiny(), size)
    found = pad_samples(batch)
    assert len(found) == padded
    assert found.lengths.shape == (3, padded)
    assert (found.dense[:size] == batch.dense).all()
    assert not found.dense[size:].any()
    assert (found.lengths[:, :size] == batch.lengths).all()
    assert not found.lengths[:, size:].any()
    assert found.values is batch.values
    for shape in [(size,), (size, 2), (size, 3, 2)]:
        rows = pad_rows(torch.ones(shape))
        assert rows.shape == (padded, *shape[1:])
        assert rows[:size].all()
        assert not rows[size:].any()
