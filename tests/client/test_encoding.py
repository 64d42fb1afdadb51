"""Python and NumPy values as JSON."""

from __future__ import annotations

import datetime
import json
from collections import OrderedDict, deque
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dlrm_factory.client import InvalidRequest
from dlrm_factory.client.encoding import encode_body


def through(value):
    return json.loads(encode_body({"x": value}))["x"]


def test_arrays_become_lists():
    assert through(np.array([1, 2**63 - 1])) == [1, 2**63 - 1]
    assert through(np.array([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
    assert through(np.array(["ü", "\x00"])) == ["ü", ""]  # NumPy's strings end at a NUL
    assert through([np.array([1]), np.array([], dtype=np.int32)]) == [[1], []]
    assert through(np.array([None, 1.5, np.int64(3)], dtype=object)) == [None, 1.5, 3]
    assert through({"ids": np.arange(2), "weights": np.float32([0.5, 2])}) == {
        "ids": [0, 1],
        "weights": [0.5, 2],
    }


def test_scalars_and_containers():
    assert through([np.int64(2**62 + 1), np.float32(0.5), np.bool_(True), np.str_("a")]) == [
        2**62 + 1,
        0.5,
        True,
        "a",
    ]
    assert through((1, "a", None)) == [1, "a", None]
    assert through(MappingProxyType(OrderedDict(a=deque([1])))) == {"a": [1]}
    assert through(range(3)) == [0, 1, 2]


def test_anything_with_tolist():
    pandas = pytest.importorskip("pyarrow")
    assert through(pandas.array([1, None, 3])) == [1, None, 3]


@given(arrays(np.int64, array_shapes(max_dims=2), elements=st.integers(-(2**63), 2**63 - 1)))
def test_ids_stay_themselves(ids):
    assert through(ids) == ids.tolist()


@given(arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_reads_back_bit_for_bit(values):
    assert np.float32(through(values)).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        (np.array([1.0, np.nan]), "$.x[1]", "nan is not a number"),
        ([{"a b": float("inf")}], '$.x[0]["a b"]', "inf is not"),
        ([[1], [np.float32("nan")]], "$.x[1][0]", "nan is not"),
        (datetime.date(2020, 1, 1), "$.x", "type date cannot be sent"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "$.x[0]", "type date cannot be sent"),
        ([b"u17"], "$.x[0]", "type bytes"),
        ({1, 2}, "$.x", "type set"),
        (3j, "$.x", "type complex"),
        (np.complex64(1), "$.x", "type complex"),
    ],
)
def test_what_json_cannot_hold_is_named(value, path, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        encode_body({"x": value})
    assert caught.value.path == path
    assert caught.value.status is None
    assert [problem.path for problem in caught.value.problems] == [path]


def test_what_has_no_path():
    loop: list = []
    loop.append(loop)
    for value in (loop, "\ud800", 10**5000, {(1, 2): 3}):
        with pytest.raises(InvalidRequest):
            encode_body({"x": value})
