from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.config import DenseFeature
from dlrm_factory.errors import WeightsError
from dlrm_factory.features.dense import DenseEncoder, log1p, transform_dense
from dlrm_factory.features.feature_error import FeatureError

PRICE = DenseFeature(name="price", default=2.0)
VISITS = DenseFeature(name="visits", default=3.0, transform="log1p")
ENCODER = DenseEncoder([PRICE, VISITS])


def test_columns_become_rows_in_declared_order() -> None:
    dense = ENCODER.encode({"visits": [0, 1.0, 7], "price": [1, -2.5, 0.1]}, 3)
    assert dense.dtype == np.float32
    assert dense.flags.c_contiguous
    expected = [[1, 0], [-2.5, math.log(2)], [0.1, math.log(8)]]
    np.testing.assert_array_equal(dense, np.array(expected, dtype=np.float32))


def test_defaults_are_taken_before_the_transform() -> None:
    expected = np.array([[2.0, math.log(4)]] * 2, dtype=np.float32)
    np.testing.assert_array_equal(ENCODER.encode({}, 2), expected)
    np.testing.assert_array_equal(ENCODER.encode({"price": [None, None], "visits": [None, 3]}, 2), expected)


def test_no_samples() -> None:
    assert ENCODER.encode({"price": []}, 0).shape == (0, 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "true is a boolean"),
        ("9.5", '"9.5" is a string'),
        ([1.0], "a list of 1 is not a number"),
        ({"a": 1}, "an object is not a number"),
        (math.nan, "NaN is not a finite number"),
        (-math.inf, "-Infinity is not a finite number"),
        (1e39, "1e+39 is out of float32's range"),
        (10**40, "out of float32's range"),
        (-(10**400), "an integer of about 400 digits is out of float32's range"),
    ],
)
def test_what_is_not_a_number(value: object, said: str) -> None:
    with pytest.raises(FeatureError) as caught:
        ENCODER.encode({"price": [None, 1, value, "later"], "visits": ["later"] * 4}, 4)
    assert caught.value.message.startswith('dense feature "price": ')
    assert said in caught.value.message
    assert (caught.value.feature, caught.value.sample, caught.value.position) == ("price", 2, None)


def test_the_largest_float32_and_its_neighbours() -> None:
    most = float(np.finfo(np.float32).max)
    assert ENCODER.encode({"price": [most, 3.4028235e38]}, 2)[:, 0].tolist() == [most, most]
    with pytest.raises(FeatureError, match="float32"):
        ENCODER.encode({"price": [3.4028237e38]}, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, -1e39])
def test_arrays_of_numbers_are_checked_at_both_ends(value: float) -> None:
    with pytest.raises(FeatureError) as raised:
        ENCODER.encode_numbers(np.array([[1.0, 2.0], [3.0, value]]))
    assert (raised.value.feature, raised.value.sample) == ("visits", 1)


def test_log1p_takes_negative_counts_as_zero() -> None:
    values = log1p(np.array([-1, -0.0, 0, math.e - 1, 1e38], dtype=np.float32))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [0, 0, 0, 1, math.log(1e38)], rtol=1e-7)


def test_transform_leaves_its_input_alone() -> None:
    dense = np.ones((2, 2), dtype=np.float32)
    assert transform_dense(dense, [PRICE, VISITS])[0].tolist() == [1.0, np.float32(math.log(2))]
    assert (dense == 1).all()


@given(
    st.lists(st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-5, 10**9)))
)
def test_together_as_alone(rows: list[tuple[float, int]]) -> None:
    together = ENCODER.encode({"price": [p for p, _ in rows], "visits": [v for _, v in rows]}, len(rows))
    for i, (price, visits) in enumerate(rows):
        alone = ENCODER.encode({"price": [price], "visits": [visits]}, 1)
        assert alone[0].tobytes() == together[i].tobytes()


FULL = DenseFeature(
    name="spent", default=-5.0, clip=(0.0, 20.0), transform="log1p_standardize", mean=1.0, std=2.0
)
PLAIN = DenseFeature(name="hour", clip=(0.0, 24.0), transform="standardize", mean=12.0, std=6.0)


def test_default_then_clip_then_log1p_then_standardise() -> None:
    dense = DenseEncoder([FULL, PLAIN]).encode({"spent": [None, -3, 7, 1000], "hour": [0, 12, 24, 99]}, 4)
    expected = [
        [(math.log(1) - 1) / 2, -2],
        [(math.log(1) - 1) / 2, 0],
        [(math.log(8) - 1) / 2, 2],
        [(math.log(21) - 1) / 2, 2],
    ]
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, expected, rtol=1e-6, atol=1e-7)


def test_what_training_measures_is_not_standardised_yet() -> None:
    raw = np.array([[30.0, 99.0]], dtype=np.float32)
    measured = transform_dense(raw, [FULL, PLAIN], until_standardized=True)
    np.testing.assert_allclose(measured, [[math.log(21), 24]], rtol=1e-6)
    assert raw.tolist() == [[30, 99]]


def test_a_standardised_feature_needs_its_statistics() -> None:
    with pytest.raises(WeightsError, match='"hour" is standardised, but has no mean and std'):
        DenseEncoder([DenseFeature(name="hour", transform="standardize")])


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "3"])
def test_a_clipped_feature_is_checked_before_it_is_clipped(value: object) -> None:
    with pytest.raises(FeatureError, match="hour"):
        DenseEncoder([PLAIN]).encode({"hour": [value]}, 1)
