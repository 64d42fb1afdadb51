"""Raw columns → model-ready ones, and what is refused."""

from __future__ import annotations

import logging

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from dlrm_factory.errors import DataError
from dlrm_factory.features import hash_ids
from dlrm_factory.tools.data.encoding import EncodedChunk, encode_chunk
from dlrm_factory.tools.data.files import read_chunks


def encode(path, declaration) -> EncodedChunk:
    (chunk,) = read_chunks([path], declaration)
    return encode_chunk(chunk, declaration)


def bags_of(encoded: EncodedChunk, feature: int) -> list[list[int]]:
    bags = encoded.bags[feature]
    return [part.tolist() for part in np.split(bags.values, np.cumsum(bags.lengths)[:-1])]


def test_one_csv_row_by_hand(write_csv, declaration):
    encoded = encode(write_csv("1,9.5,7,u17,3,1|4|1", "false,,,,,", "0,nan,NA,17,0,|9|"), declaration)
    assert encoded.labels[:, 0].tolist() == [1, 0, 0]
    expected = [[9.5, np.log1p(7)], [0, np.log1p(30)], [0, np.log1p(30)]]
    assert encoded.dense.tolist() == np.array(expected, dtype=np.float32).tolist()
    assert bags_of(encoded, 0) == [hash_ids(["u17"], 1000).tolist(), [], hash_ids([17], 1000).tolist()]
    assert bags_of(encoded, 1) == [[3], [], [0]]
    assert bags_of(encoded, 2) == [[1, 4, 1], [], [9]]


def test_declared_words_mean_missing_in_any_case_of_letters(write_csv, declaration):
    price = msgspec.structs.replace(
        declaration.dense_features[0], missing_values=("?", "Unknown", "inf"), default=4.0
    )
    lenient = msgspec.structs.replace(declaration, dense_features=[price, *declaration.dense_features[1:]])
    rows = ["1,?,1,u,3,4", "1, unknown ,1,u,3,4", "1,inf,1,u,3,4", "1,NA,1,u,3,4", "1,2.5,1,u,3,4"]
    encoded = encode(write_csv(*rows), lenient)
    assert encoded.dense[:, 0].tolist() == [4.0, 4.0, 4.0, 4.0, 2.5]
    assert encoded.unreadable.features == {}
    # Another feature has words of its own, and another text is a mistake still.
    for line, column in (
        ("1,2,?,u,3,4", "age_days"),
        ("1,cheap,1,u,3,4", "price"),
        ("1,-inf,1,u,3,4", "price"),
    ):
        with pytest.raises(DataError, match=f'column "{column}".*or the word among its missing_values'):
            encode(write_csv(line), lenient)


def test_text_of_a_single_valued_feature_is_not_split(write_csv, declaration):
    user = msgspec.structs.replace(declaration.sparse_features[0], max_length=1)
    single = msgspec.structs.replace(declaration, sparse_features=[user, *declaration.sparse_features[1:]])
    path = write_csv("1,1,1,a|b,3,1")
    assert bags_of(encode(path, single), 0) == [hash_ids(["a|b"], 1000).tolist()]
    assert bags_of(encode(path, declaration), 0) == [hash_ids(["a", "b"], 1000).tolist()]


@pytest.mark.parametrize(
    "users",
    [
        pa.array(["5", "x"]),
        pa.array(["5", "x"], pa.large_string()),
        pa.array(["5", "x"]).dictionary_encode(),
        pa.array([["5"], ["x"]]),
        pa.array([["5"], ["x"]], pa.list_(pa.string(), 1)),
    ],
)
def test_parquet_text_layouts(write_parquet, declaration, users):
    encoded = encode(write_parquet(user_id=users), declaration)
    assert bags_of(encoded, 0) == [hash_ids([5], 1000).tolist(), hash_ids(["x"], 1000).tolist()]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (pa.array([3, None]), [[3], []]),
        (pa.array([3, 199], pa.uint8()), [[3], [199]]),
        (pa.array([3.0, None]), [[3], []]),
        (pa.array([3.0, float("nan")]), [[3], []]),
        (pa.array([[3, 4], None]), [[3, 4], []]),
        (pa.array([[], [5]], pa.large_list(pa.int32())), [[], [5]]),
        (pa.array([None, None]), [[], []]),
    ],
)
def test_parquet_index_layouts(write_parquet, declaration, items, expected):
    assert bags_of(encode(write_parquet(item_id=items), declaration), 1) == expected


def test_parquet_dense_layouts(write_parquet, declaration):
    path = write_parquet(price=[True, False], age_days=pa.array([2, None], pa.int64()), click=[True, False])
    encoded = encode(path, declaration)
    assert encoded.dense.tolist() == np.log1p(np.array([[np.e - 1, 2], [0, 30]])).astype(np.float32).tolist()
    assert encoded.labels[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,cheap,1,u,3,4", 'row 2, column "price": "cheap" is not a number'),
        ("1,inf,1,u,3,4", 'row 2, column "price": "inf" is not a finite float32 number'),
        ("1,1,1e39,u,3,4", 'row 2, column "age_days": "1e39" is not a finite float32 number'),
        ("2,1,1,u,3,4", r'row 2, column "click": the label is "2"; it must be 0 or 1'),
        (",1,1,u,3,4", r'row 2, column "click": the label is nothing'),
        ("yes,1,1,u,3,4", r'row 2, column "click": "yes" is not a number'),
        ("1,1,1,u,200,4", r'row 2, column "item_id": id 200 is out of range \[0, 200\)'),
        ("1,1,1,u,-1,4", r'row 2, column "item_id": id -1 is out of range \[0, 200\)'),
        ("1,1,1,u,sku,4", r'row 2, column "item_id": "sku" is not an integer id.*ids: hash'),
        ("1,1,1,u,007,4", r'row 2, column "item_id": "007" is not an integer id'),
        ("1,1,1,u,3.0,4", r'row 2, column "item_id": "3.0" is not an integer id.*Int64'),
        ("1,1,1,u,3,4|50", r'row 2, column "item_tags": id 50 is out of range \[0, 50\)'),
        ("1,1,1,u,3,1|2|3|4|5|6|7|8|9", "row 2, .* the bag holds 9 ids, but max_length is 8"),
    ],
)
def test_a_wrong_csv_cell_is_named(write_csv, declaration, line, message):
    with pytest.raises(DataError, match=message):
        encode(write_csv("0,,,,,", line, line), declaration)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"price": [[1.0], [2.0]]}, 'column "price": holds list<.*double>; a dense feature'),
        ({"click": [0, 3]}, 'row 2, column "click": the label is 3'),
        ({"item_id": [1.0, 2.5]}, 'row 2, column "item_id": id 2.5 is not an integer'),
        ({"user_id": [1.0, 2.0**53]}, 'row 2, column "user_id": id .* does not fit a float exactly'),
        ({"user_id": [1.0, float("inf")]}, 'row 2, column "user_id": id inf does not fit'),
        ({"user_id": pa.array([1, 2**63], pa.uint64())}, "row 2, .*: id 9223372036854775808 is above"),
        ({"user_id": [True, False]}, 'column "user_id": holds bool; ids are integers or text'),
        ({"item_tags": [[1], [None, 2]]}, 'row 2, column "item_tags": the bag holds a null'),
        ({"item_tags": [[], [1, 2, 77]]}, r'row 2, column "item_tags": id 77 is out of range'),
    ],
)
def test_a_wrong_parquet_cell_is_named(write_parquet, declaration, columns, message):
    with pytest.raises(DataError, match=message):
        encode(write_parquet(**columns), declaration)


def test_hashed_ids_that_look_like_floats_are_warned_of_once(write_csv, declaration, caplog):
    with caplog.at_level(logging.WARNING):
        encode(write_csv("1,1,1,3.0,3,4", "1,1,1,4.0,3,4"), declaration)
    (record,) = caplog.records
    assert 'column "user_id": the id "3.0" is text' in record.getMessage()
