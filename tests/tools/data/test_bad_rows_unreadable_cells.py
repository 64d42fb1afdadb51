"""Cells that cannot be read count as missing where the declaration says so, and as mistakes elsewhere."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from dlrm_factory.config import DLRMDeclaration, tiny
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.encoding import encode_chunk
from dlrm_factory.tools.data.files import Chunk
from dlrm_factory.tools.data.source import read_clicks

GOOD = {"click": "1", "price": "2.5", "age_days": "3", "user_id": "u", "item_id": "7", "item_tags": "1|2"}
ODD = [
    ("price", "unkonwn"),
    ("price", "inf"),
    ("age_days", "1e39"),
    ("item_id", "sku"),
    ("item_id", "200"),
    ("item_tags", "3|50"),
    ("item_tags", "1|2|3|4|5|6|7|8|9"),
]


def lenient(*, standardize: bool = False, **training) -> DLRMDeclaration:
    base = tiny()
    dense = [msgspec.structs.replace(f, unreadable="missing") for f in base.dense_features]
    if standardize:
        dense[0] = msgspec.structs.replace(dense[0], transform="standardize", default=4.0)
    return msgspec.structs.replace(
        base,
        dense_features=dense,
        sparse_features=[msgspec.structs.replace(f, unreadable="missing") for f in base.sparse_features],
        training=msgspec.structs.replace(base.training, **training),
    )


def chunk_of(rows: list[dict]) -> Chunk:
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in GOOD}
    return Chunk(source="clicks", first_row=1, columns=pa.RecordBatch.from_pydict(columns))


@pytest.mark.parametrize(("column", "cell"), ODD)
def test_an_unreadable_cell_is_encoded_as_an_empty_one(column, cell):
    odd = encode_chunk(chunk_of([GOOD, GOOD | {column: cell}, GOOD]), lenient())
    empty = encode_chunk(chunk_of([GOOD, GOOD | {column: None}, GOOD]), lenient())
    assert odd.dense.tolist() == empty.dense.tolist()
    for one, other in zip(odd.bags, empty.bags, strict=True):
        assert one.lengths.tolist() == other.lengths.tolist()
        assert one.values.tolist() == other.values.tolist()
    assert empty.unreadable.features == {}
    (name,) = odd.unreadable.features
    assert name == column
    assert odd.unreadable.features[name].mask.tolist() == [False, True, False]
    assert odd.unreadable.features[name].example.startswith(f'clicks, row 2, column "{column}": ')


@pytest.mark.parametrize(("column", "cell"), ODD)
def test_elsewhere_it_is_a_mistake(column, cell):
    with pytest.raises(DataError, match=f'clicks, row 1, column "{column}"'):
        encode_chunk(chunk_of([GOOD | {column: cell}]), tiny())


def test_a_dense_mistake_says_how_to_allow_it():
    with pytest.raises(
        DataError, match=r'"cheap" is not a number; mend it, or declare .* unreadable: missing'
    ):
        encode_chunk(chunk_of([GOOD | {"price": "cheap"}]), tiny())


@pytest.mark.parametrize("label", [None, "yes", "2"])
def test_a_row_without_a_label_is_a_mistake_all_the_same(label):
    with pytest.raises(DataError, match='row 1, column "click"'):
        encode_chunk(chunk_of([GOOD | {"click": label}]), lenient())


def test_cells_are_counted_and_fitted_as_missing_and_rows_without_a_label_are_left_out(write_csv):
    lines = [f"{i % 2},{i % 5},1,u,{i % 200},3" for i in range(100)]
    lines[10] = "1,unkonwn,1,u,sku,3"
    lines[20] = "1,n.n.,1,u,3,3"
    lines[30] = ",n.n.,1,u,3,3"  # left out, so its cell does not count
    path = write_csv(*lines)
    declaration = lenient(standardize=True, max_bad_rows=0.05, holdout=0.01)
    clicks = read_clicks(declaration, [path], rows=None, observe=lambda _: None)
    assert [(found.feature, found.cells) for found in clicks.unreadable] == [("price", 2), ("item_id", 1)]
    assert clicks.unreadable[0].example == f'{path}, row 11, column "price": "unkonwn" is not a number'
    assert clicks.bad_rows is not None
    assert clicks.bad_rows.rows == 1
    lines[10], lines[20] = "1,,1,u,,3", "1,,1,u,3,3"
    cleaned = read_clicks(declaration, [write_csv(*lines)], rows=None, observe=lambda _: None)
    assert cleaned.features == clicks.features
    assert np.array_equal(cleaned.dataset.dense, clicks.dataset.dense)
    assert cleaned.unreadable == ()


def test_a_part_of_the_data_may_have_more_of_them_than_the_whole(write_csv):
    path = write_csv(*["1,unkonwn,1,u,3,3"] * 30, *["0,1,1,u,3,3"] * 3)
    clicks = read_clicks(lenient(), [path], rows=None, observe=lambda _: None)
    assert len(clicks.dataset) == 33
    assert clicks.unreadable[0].cells == 30


def test_the_ids_of_an_unreadable_bag_have_no_row_in_the_vocabulary(write_csv):
    base = lenient()
    features = list(base.sparse_features)
    features[0] = msgspec.structs.replace(features[0], ids="vocabulary", max_length=2)
    declaration = msgspec.structs.replace(base, sparse_features=features)
    path = write_csv(*["1,1,1,a|b,3,3"] * 20, *["0,1,1,x|y|z,3,3"] * 20)
    clicks = read_clicks(declaration, [path], rows=None, observe=lambda _: None)
    assert clicks.features.vocabularies is not None
    (found,) = clicks.unreadable
    assert (found.feature, found.cells) == ("user_id", 20)
    assert int(clicks.dataset.offsets[0][-1]) == 40
    assert sorted(set(clicks.dataset.values[0].tolist())) == [0, 1]
