from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.compiled.sizes import SIZES, SizedDense, pieces


@given(st.integers(1, 3000))
def test_pieces_cover_the_samples_once(samples):
    found = list(pieces(samples))
    assert found[0][0] == 0
    assert found[-1][1] == samples
    assert all(before[1] == after[0] for before, after in itertools.pairwise(found))
    for start, stop, size in found:
        assert size in SIZES
        assert stop - start <= size <= 2 * (stop - start)


@given(st.integers(1, 1300))
def test_only_the_sizes_are_met_and_filling_is_dropped(samples):
    met = []

    def compiled(dense, pooled):
        met.append((dense.shape[0], pooled.shape[0]))
        return dense.sum(1) + pooled.sum((1, 2)) + 1

    dense, pooled = torch.randn(samples, 2), torch.randn(samples, 3, 4)
    logits = SizedDense(compiled)(dense, pooled)
    assert {size for pair in met for size in pair} <= set(SIZES)
    assert np.allclose(logits, (dense.sum(1) + pooled.sum((1, 2)) + 1).numpy(), atol=1e-6)


def test_every_size_is_met_before_the_first_request():
    met = []
    SizedDense(lambda dense, pooled: met.append(dense.shape[0])).warm_up(2, 3, 4)
    assert met == list(SIZES)
