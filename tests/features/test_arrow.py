"""Arrow columns → arrays: every layout of the same values gives the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dlrm_factory.config.declaration import DenseFeature, SparseFeature
from dlrm_factory.features.arrow import (
    above_int64,
    flatten_column,
    integers,
    is_list,
    is_number,
    is_text,
    numbers,
    plain_column,
)
from dlrm_factory.requests.formats.arrow.columns import bags as bags_of_request
from dlrm_factory.requests.formats.arrow.columns import numbers as numbers_of_request
from dlrm_factory.tools.data.bad_rows import Place
from dlrm_factory.tools.data.bags import encode_bags
from dlrm_factory.tools.data.encoding import encode_dense

PLACE = Place(source="file", first_row=1, column="x")
BAGS = [[3, 1], None, [], [2, 2]]
LISTS = [
    pa.list_(pa.int64()), pa.list_(pa.int8()), pa.large_list(pa.uint64()), pa.list_view(pa.int64()),
    pa.large_list_view(pa.int32()), pa.list_(pa.dictionary(pa.int8(), pa.int64())),
]  # fmt: skip


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_every_layout_of_lists_is_the_same_bags_in_training_and_serving(kind: Any) -> None:
    column = pa.array([[9], *BAGS], kind).slice(1)
    feature = SparseFeature(name="x", table="t", max_length=4)
    trained = encode_bags(column, feature, 10, "|", PLACE)
    served = bags_of_request(plain_column(column))
    assert served is not None
    assert trained.lengths.tolist() == served[0].tolist() == [2, 0, 0, 2]
    assert trained.values.tolist() == served[1].tolist() == [3, 1, 2, 2]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.dictionary(pa.int8(), pa.int64())], ids=str)
def test_single_values_are_bags_of_one_in_training_and_serving(kind: Any) -> None:
    column = pa.array([4, None, 0], kind)
    trained = encode_bags(column, SparseFeature(name="x", table="t"), 10, "|", PLACE)
    served = bags_of_request(column)
    assert served is not None
    assert trained.lengths.tolist() == served[0].tolist() == [1, 0, 1]
    assert trained.values.tolist() == served[1].tolist() == [4, 0]


def test_a_null_list_of_one_size_hides_its_values() -> None:
    values, lengths = flatten_column(pa.array([[1, 2], None, [5, 6]], pa.list_(pa.int64(), 2)))
    assert (values.to_pylist(), lengths.tolist()) == ([1, 2, 5, 6], [2, 0, 2])


@pytest.mark.parametrize("kind", [pa.int32(), pa.float32(), pa.float64(), pa.float16()], ids=str)
def test_dense_numbers_are_the_same_in_training_and_serving(kind: Any) -> None:
    for values in ([1, 2, 3], [1, None, 3]):
        column = pa.array(
            [None if value is None else np.float16(value) for value in values], pa.float16()
        ).cast(kind)
        feature = DenseFeature(name="x", default=0.5)
        served = numbers_of_request(column, 0.5)
        assert served is not None
        wanted = [0.5 if value is None else value for value in values]
        assert encode_dense(column, feature, PLACE).tolist() == served.tolist() == wanted


def test_a_dictionary_of_numbers_is_decoded() -> None:
    column = pa.array([1.5, None, 1.5]).dictionary_encode()
    assert encode_dense(column, DenseFeature(name="x", default=2.0), PLACE).tolist() == [1.5, 2.0, 1.5]


def test_integers_keep_every_bit() -> None:
    column = pa.array([2**53 + 1, -(2**63)])
    assert integers(column).tolist() == [2**53 + 1, -(2**63)]
    over = above_int64(pa.array([2**63, 2**63 - 1], pa.uint64()))
    assert over is not None
    assert over.tolist() == [True, False]
    assert above_int64(pa.array([2**63 - 1], pa.uint64())) is None
    assert bags_of_request(pa.array([2**63], pa.uint64())) is None


def test_decimals_are_numbers_and_booleans_are_none() -> None:
    assert is_number(pa.decimal128(5, 2))
    assert not is_number(pa.bool_())
    assert numbers(pa.array([None, "1.25"]).cast(pa.decimal128(5, 2)), 7.0).tolist() == [7.0, 1.25]


def test_text_of_every_layout_is_text() -> None:
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert is_text(kind)
    assert not is_text(pa.binary())
    assert not is_list(pa.map_(pa.string(), pa.int64()))
