from __future__ import annotations

import gzip

import pyarrow as pa
import pytest

from dlrm_factory.errors import DataError
from dlrm_factory.tools.data import files
from dlrm_factory.tools.data.files import read_chunks

HEADER = b"click,price,age_days,user_id,item_id,item_tags\n"


def test_all_csv_columns_come_as_text_and_only_empty_cells_are_missing(write_csv, declaration):
    path = write_csv('0,1,,NA,007,"3|9"', "1,,2,,5,")
    (chunk,) = read_chunks([path], declaration)
    assert set(chunk.columns.schema.types) == {pa.string()}
    assert chunk.columns.to_pydict()["user_id"] == ["NA", None]
    assert chunk.columns.to_pydict()["item_id"] == ["007", "5"]
    assert chunk.columns.to_pydict()["age_days"] == [None, "2"]


def test_other_columns_are_left_out_and_order_does_not_matter(write_csv, declaration):
    path = write_csv("x,3,u1,2,1,9,0", header="note,item_id,user_id,age_days,price,item_tags,click")
    (chunk,) = read_chunks([path], declaration)
    assert chunk.columns.schema.names == ["click", "price", "age_days", "user_id", "item_id", "item_tags"]
    assert chunk.columns.to_pydict()["price"] == ["1"]


def test_rows_are_counted_in_each_file(write_csv, write_parquet, declaration, monkeypatch):
    monkeypatch.setattr(files, "_PARQUET_ROWS", 1)
    paths = [write_csv("0,1,2,u1,3,4"), write_parquet()]
    chunks = list(read_chunks(paths, declaration))
    assert [(chunk.source, chunk.first_row) for chunk in chunks] == [
        (str(paths[0]), 1),
        (str(paths[1]), 1),
        (str(paths[1]), 2),
    ]


def test_a_csv_of_many_blocks(write_csv, declaration, monkeypatch):
    monkeypatch.setattr(files, "_CSV_BLOCK_BYTES", 200)
    chunks = list(read_chunks([write_csv(*(f"0,{i},2,u1,3,4" for i in range(100)))], declaration))
    assert len(chunks) > 5
    prices = [price for chunk in chunks for price in chunk.columns["price"].to_pylist()]
    assert prices == [str(i) for i in range(100)]
    assert [chunk.first_row for chunk in chunks[1:]] == [
        1 + sum(len(chunk.columns) for chunk in chunks[:k]) for k in range(1, len(chunks))
    ]


def test_compressed_csv_and_tsv(tmp_path, declaration):
    text = "click\tprice\tage_days\tuser_id\titem_id\titem_tags\n1\t1\t2\tu1\t3\t4\n"
    path = tmp_path / "clicks.tsv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    (chunk,) = read_chunks([path], declaration)
    assert chunk.columns.to_pydict()["user_id"] == ["u1"]


def test_a_missing_column_names_near_matches_before_any_row_is_read(write_csv, declaration):
    good = write_csv("0,1,2,u1,3,4")
    bad = write_csv("0,1,2,u1,3,4", name="bad.csv", header="click,price,age_days,userid,item_id,item_tags")
    with pytest.raises(DataError, match=r'bad.csv: there is no column "user_id"; did you mean "userid"\?'):
        next(read_chunks([good, bad], declaration))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clicks.xlsx", b"", "neither CSV nor Parquet"),
        ("clicks.parquet", b"not parquet at all", "cannot be read"),
        ("clicks.csv", b"", "cannot be read"),
        ("clicks.csv", HEADER.replace(b"click", b"click,price"), '2 columns are called "price"'),
        ("clicks.csv", HEADER + b"1,2\n", "cannot be read: .*6 columns, got 2"),
        ("clicks.csv", HEADER + b"1,2,3,\xff,5,6\n", "UTF8"),
    ],
)
def test_unreadable_files(tmp_path, declaration, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_chunks([path], declaration))


def test_an_absent_file(tmp_path, declaration):
    for name in ("gone.csv", "gone.parquet"):
        with pytest.raises(DataError, match="there is no such file"):
            list(read_chunks([tmp_path / name], declaration))
