"""A batch in pieces is the batch."""

from __future__ import annotations

import numpy as np
import pytest
from support.batches import random_batch
from support.sharding import DTYPES, declared

from dlrm_factory.batch import concatenate, split


@pytest.mark.parametrize("size", [1, 3, 7, 20, 50])
@pytest.mark.parametrize("weighted", [False, True])
def test_pieces_join_to_the_batch(size: int, weighted: bool) -> None:
    whole = random_batch(declared("auto", "sum", DTYPES[0]), 20, seed=size)
    if weighted:
        weights = np.arange(len(whole.values), dtype=np.float32)
        whole = type(whole)(dense=whole.dense, lengths=whole.lengths, values=whole.values, weights=weights)
    pieces = list(split(whole, size))
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert all(piece.lengths.sum() == len(piece.values) for piece in pieces)
    joined = concatenate(pieces)
    for field in ("dense", "lengths", "values", "weights"):
        assert np.array_equal(getattr(joined, field), getattr(whole, field)), field


def test_an_empty_batch_has_no_pieces() -> None:
    assert list(split(random_batch(declared("auto", "sum", DTYPES[0]), 0), 5)) == []
