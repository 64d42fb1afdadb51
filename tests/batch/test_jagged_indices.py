"""Indices of jagged parts."""

from __future__ import annotations

import numpy as np

from dlrm_factory.batch.jagged_indices import jagged_indices


def test_jagged_indices_by_hand():
    assert jagged_indices(np.array([2, 9, 7]), np.array([3, 0, 1])).tolist() == [2, 3, 4, 7]


def test_of_unsigned_starts_and_of_no_parts():
    assert jagged_indices(np.array([5, 0], dtype=np.uint64), np.array([1, 2])).tolist() == [5, 0, 1]
    assert jagged_indices(np.array([], dtype=np.uint64), np.array([], dtype=np.int64)).tolist() == []
