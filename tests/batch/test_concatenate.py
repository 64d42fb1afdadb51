from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.batch import FeatureBatch, concatenate

FEATURES = 3
SAMPLE = st.lists(st.lists(st.integers(0, 2**40), max_size=4), min_size=FEATURES, max_size=FEATURES)
BATCHES = st.lists(st.lists(SAMPLE, max_size=4), min_size=1, max_size=5)


def batch_of(samples: list[list[list[int]]], first: int = 0) -> FeatureBatch:
    """Samples as lists of bags; dense is the sample's number, counted from ``first``."""
    return FeatureBatch(
        dense=np.arange(first, first + len(samples), dtype=np.float32).reshape(-1, 1),
        lengths=np.array([[len(s[f]) for s in samples] for f in range(FEATURES)], dtype=np.int32),
        values=np.array([v for f in range(FEATURES) for s in samples for v in s[f]], dtype=np.int64),
    )


def bags_of(batch: FeatureBatch) -> Iterator[list[int]]:
    at = 0
    for length in batch.lengths.reshape(-1).tolist():
        yield batch.values[at : at + length].tolist()
        at += length


@given(BATCHES)
def test_every_id_stays_in_its_bag(parts: list[list[list[list[int]]]]) -> None:
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    together = concatenate([batch_of(part, start) for part, start in zip(parts, starts, strict=False)])
    samples = [sample for part in parts for sample in part]
    assert list(bags_of(together)) == [sample[f] for f in range(FEATURES) for sample in samples]
    assert together.dense.reshape(-1).tolist() == list(range(len(samples)))
    assert together.lengths.shape == (FEATURES, len(samples))
    assert (together.dense.dtype, together.lengths.dtype, together.values.dtype) == (
        np.float32,
        np.int32,
        np.int64,
    )


def test_one_batch_is_itself() -> None:
    batch = batch_of([[[1], [], [2, 3]]])
    assert concatenate([batch]) is batch


def test_no_samples_at_all() -> None:
    assert len(concatenate([batch_of([]), batch_of([])])) == 0
