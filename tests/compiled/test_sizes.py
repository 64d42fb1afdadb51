from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.batch import Embeddings
from dlrm_factory.compiled.sizes import SIZES, SizedDense, pieces
from dlrm_factory.config import tiny


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

    def compiled(dense, found):
        met.append((dense.shape[0], found.pooled.shape[0]))
        return dense.sum(1, keepdim=True) + found.pooled.float().sum(1, keepdim=True) + 1

    dense, found = torch.randn(samples, 2), Embeddings(torch.randn(samples, 12).to(dtype))
    logits = SizedDense(compiled, dtype)(dense, found)
    if dtype is torch.bfloat16:
        assert {size for pair in met for size in pair} <= set(SIZES)
    else:
        rest = samples % SIZES[-1]
        assert [of_dense for of_dense, _ in met] == [SIZES[-1]] * (samples // SIZES[-1]) + [rest] * (rest > 0)
    assert all(of_dense == of_pooled <= SIZES[-1] for of_dense, of_pooled in met)
    assert np.allclose(logits, compiled(dense, found).numpy(), atol=1e-6)


def test_every_size_is_met_before_the_first_request():
    met = []
    SizedDense(lambda dense, found: met.append(dense.shape[0]), torch.float32).warm_up(tiny())
    assert met == list(SIZES)


def test_what_an_earlier_batch_left_does_not_matter():
    def compiled(dense, found):
        return dense.sum(1, keepdim=True) + found.pooled.float().sum(1, keepdim=True)

    sized = SizedDense(compiled, torch.bfloat16)
    for samples, value in ((400, float("nan")), (3, 1.0), (70, 2.0), (520, 3.0), (5, 4.0)):
        dense, pooled = torch.full((samples, 2), value), torch.full((samples, 12), value)
        logits = sized(dense, Embeddings(pooled))
        assert logits.shape == (samples, 1)
        assert np.array_equal(logits, np.full((samples, 1), 14 * value, np.float32), equal_nan=True)
