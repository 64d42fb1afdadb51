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
from dlrm_factory.tools.client.encoding import columns_of, encode_body


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


class NAType:
    """Missing value as pandas has it."""


class Frame:
    """A table, as far as pandas' or polars' has it."""

    def __init__(self, columns, *, pandas):
        self.columns = list(columns)
        values = list(columns.values())
        if pandas:
            self.iloc = type("At", (), {"__getitem__": lambda _, place: values[place[1]]})()
        else:
            self.get_column = columns.__getitem__


class Series:
    def __init__(self, values):
        self.to_list = lambda: values


def test_what_is_missing_is_null():
    assert through(float("nan")) is None
    assert through(np.array([1.5, np.nan])) == [1.5, None]
    assert through([{"a": np.float32("nan"), "b": 3, "c": "nan"}]) == [{"a": None, "b": 3, "c": "nan"}]
    assert through(np.array([np.nan, "a", None], dtype=object)) == [None, "a", None]
    assert through([NAType(), 2**63 - 1, np.nan]) == [None, 2**63 - 1, None]
    assert through(np.ma.array([1, 2], mask=[False, True])) == [1, None]
    assert through(Series([1, None])) == [1, None]


def test_tables_are_taken_as_columns():
    pa = pytest.importorskip("pyarrow")
    columns = {"a": [1, None], "b": ["x", "y"], "c": [[1, 2], []]}
    table = pa.table(columns)
    for data in (table, table.to_batches()[0], pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        assert through(columns_of(data)) == columns
    series = {name: Series(values) for name, values in columns.items()}
    for pandas in (True, False):
        assert through(columns_of(Frame(series, pandas=pandas))) == columns
    for other in (columns, [columns], [], {"columns": [1]}):
        assert columns_of(other) is None
    with pytest.raises(InvalidRequest, match='two columns "a"'):
        columns_of(pa.table([[1], [2]], names=["a", "a"]))


@given(arrays(np.int64, array_shapes(max_dims=2), elements=st.integers(-(2**63), 2**63 - 1)))
def test_ids_stay_themselves(ids):
    assert through(ids) == ids.tolist()


@given(arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_reads_back_bit_for_bit(values):
    assert np.float32(through(values)).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        (np.array([1.0, np.inf, np.nan]), "$.x[1]", "inf is not a number"),
        ([{"a b": float("inf")}], '$.x[0]["a b"]', "inf is not"),
        ([[1], [np.float32("-inf")]], "$.x[1][0]", "-inf is not"),
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
