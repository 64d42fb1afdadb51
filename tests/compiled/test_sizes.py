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
    assert all(stop - start == size for start, stop, size in found[:-1])


@given(st.integers(1, 512))
def test_little_is_computed_for_nothing(samples):
    found = [size for *_, size in pieces(samples)]
    assert sum(found) - samples < 96
    assert len(found) <= 3


@given(st.integers(1, 1300), st.sampled_from([torch.bfloat16, torch.float32]))
def test_in_bfloat16_only_the_sizes_are_met_and_filling_is_dropped(samples, dtype):
    met = []

    def compiled(dense, pooled):
        met.append((dense.shape[0], pooled.shape[0]))
        return dense.sum(1) + pooled.float().sum((1, 2)) + 1

    dense, pooled = torch.randn(samples, 2), torch.randn(samples, 3, 4).to(dtype)
    logits = SizedDense(compiled, dtype)(dense, pooled)
    if dtype is torch.bfloat16:
        assert {size for pair in met for size in pair} <= set(SIZES)
    else:
        whole = [stop - start for start, stop, _ in pieces(samples)]
        assert [of_dense for of_dense, _ in met] == ([samples] if samples <= SIZES[-1] else whole)
    assert all(of_dense == of_pooled <= SIZES[-1] for of_dense, of_pooled in met)
    assert np.allclose(logits, compiled(dense, pooled).numpy(), atol=1e-6)


def test_every_size_is_met_before_the_first_request():
    met = []
    SizedDense(lambda dense, pooled: met.append(dense.shape[0]), torch.float32).warm_up(2, 3, 4)
    assert met == list(SIZES)


def test_what_an_earlier_batch_left_does_not_matter():
    def compiled(dense, pooled):
        return dense.sum(1) + pooled.float().sum((1, 2))

    sized = SizedDense(compiled, torch.bfloat16)
    for samples, value in ((400, float("nan")), (3, 1.0), (70, 2.0), (520, 3.0), (5, 4.0)):
        dense, pooled = torch.full((samples, 2), value), torch.full((samples, 3, 4), value)
        logits = sized(dense, pooled)
        assert logits.shape == (samples,)
        assert np.array_equal(logits, np.full(samples, 14 * value, np.float32), equal_nan=True)
