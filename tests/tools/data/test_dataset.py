from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.config import tiny
from dlrm_factory.tools.data.bags import Bags
from dlrm_factory.tools.data.dataset import slices
from dlrm_factory.tools.data.dataset_builder import dataset_of
from dlrm_factory.tools.data.encoding import EncodedChunk

bag = st.lists(st.integers(0, 49), max_size=4)
samples = st.lists(st.tuples(bag, bag, bag), min_size=1, max_size=12)


def chunk_of(drawn, start: int) -> EncodedChunk:
    n = len(drawn)
    return EncodedChunk(
        dense=np.arange(start, start + 2 * n, dtype=np.float32).reshape(n, 2),
        labels=np.zeros((n, 1), dtype=np.float32),
        bags=tuple(
            Bags(
                values=np.array([i for row in drawn for i in row[f]], dtype=np.int64),
                lengths=np.array([len(row[f]) for row in drawn], dtype=np.int64),
            )
            for f in range(3)
        ),
    )


@given(samples, samples, st.data())
def test_any_rows_come_back_in_any_order(first, second, data):
    dataset = dataset_of([chunk_of(first, 0), chunk_of(second, 100)], tiny())
    drawn = first + second
    assert len(dataset) == len(drawn)
    rows = data.draw(st.lists(st.integers(0, len(drawn) - 1), max_size=15))
    batch = dataset.features(np.array(rows, dtype=np.int64))
    assert batch.dense.shape == (len(rows), 2)
    assert batch.dense.dtype == np.float32
    assert (batch.lengths.dtype, batch.values.dtype) == (np.int32, np.int64)
    assert batch.lengths.tolist() == [[len(drawn[row][f]) for row in rows] for f in range(3)]
    assert batch.values.tolist() == [i for f in range(3) for row in rows for i in drawn[row][f]]


def test_slices_by_hand():
    assert [piece.tolist() for piece in slices(np.arange(5), 2)] == [[0, 1], [2, 3], [4]]
