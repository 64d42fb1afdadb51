from __future__ import annotations

import numpy as np
import pytest
import torch
from support.batches import random_batch

from dlrm_factory.batch import pad_rows, pad_samples, split
from dlrm_factory.config import tiny


@pytest.mark.parametrize(("size", "padded"), [(0, 0), (1, 4), (3, 4), (4, 4), (5, 8), (512, 512)])
def test_spare_samples_come_last_and_repeat_the_last(size, padded):
    batch = random_batch(tiny(), size)
    found = pad_samples(batch)
    assert len(found) == padded
    one_each = list(split(batch, 1))
    for i, sample in enumerate(split(found, 1)):
        expected = one_each[min(i, size - 1)]
        for field in ("dense", "lengths", "values"):
            np.testing.assert_array_equal(getattr(sample, field), getattr(expected, field))
    for shape in [(size,), (size, 2), (size, 3, 2)]:
        values = torch.randn(shape)
        rows = pad_rows(values)
        assert rows.shape == (padded, *shape[1:])
        assert torch.equal(rows[:size], values)
        assert all(torch.equal(row, values[-1]) for row in rows[size:])
