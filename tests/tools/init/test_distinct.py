from __future__ import annotations

import numpy as np
import pytest

from dlrm_factory.features.ids import mix_int64
from dlrm_factory.tools.init import profile
from dlrm_factory.tools.init.profile import Distinct


def test_few_values_are_counted_exactly():
    counter = Distinct()
    for start in (0, 50, 100):
        counter.add(mix_int64(np.arange(start, start + 100)))
    assert (counter.count, counter.exact) == (200, True)


@pytest.mark.parametrize("count", [2_000, 30_000, 400_000])
def test_many_are_estimated_within_three_standard_errors(monkeypatch, count):
    # Below 2.5 registers' worth HyperLogLog would need a correction; there the count is exact, as 2**20 is far above.
    monkeypatch.setattr(profile, "MAX_EXACT", 1000)
    monkeypatch.setattr(profile, "_BITS", 9)
    counter = Distinct()
    for part in np.array_split(np.arange(count), 7):
        counter.add(mix_int64(part))
        counter.add(mix_int64(part[::3]))
    assert not counter.exact
    assert counter.count == pytest.approx(count, rel=3 * 1.04 / np.sqrt(512))


def test_the_first_one_of_a_hash():
    bits = np.array([1 << 63, 1 << 62, (1 << 63) | 5, 1 << 20, 0], dtype=np.uint64)
    assert profile._first_one(bits).tolist() == [1, 2, 1, 44, 64 - 14 + 1]
