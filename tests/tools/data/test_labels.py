"""Labels of several outputs: rows that count, cells that are empty, and cells that are wrong."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from dlrm_factory.config import DLRMDeclaration, Output, tiny
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.encoding import encode_chunk
from dlrm_factory.tools.data.files import Chunk, declared_columns
from dlrm_factory.tools.data.labels import counts_for, label_codes
from dlrm_factory.tools.data.synthetic import generate

NAN = float("nan")
OUTPUTS = [
    Output(name="click", label="click"),
    Output(name="long", label="seconds >= 30", where="click"),
    Output(name="purchase", label="purchase", where="long"),
]


def declared(outputs: list[Output] | None = None) -> DLRMDeclaration:
    """A declaration whose labels alone matter; its rules are not asked."""
    return msgspec.structs.replace(tiny(), outputs=OUTPUTS if outputs is None else outputs)


def chunk(**labels: list) -> Chunk:
    declaration = tiny()
    rows = len(next(iter(labels.values())))
    columns = {name: pa.array([0.0] * rows) for name in declaration.dense_names}
    columns |= {name: pa.array([1] * rows) for name in declaration.sparse_names}
    return Chunk(source="c.csv", first_row=1, columns=pa.RecordBatch.from_pydict(columns | _arrays(labels)))


def _arrays(labels: dict[str, list]) -> dict[str, pa.Array]:
    return {name: pa.array(values) for name, values in labels.items()}


def labels_of(declaration: DLRMDeclaration, **labels: list) -> list[list[float]]:
    return encode_chunk(chunk(**labels), declaration).labels.tolist()


def test_a_row_counts_where_the_other_output_s_label_is_1():
    found = labels_of(
        declared(),
        click=[1, 1, 0, None, 1],
        seconds=[40, 3, 50, 60, None],
        purchase=[1, 1, 1, 1, 0],
    )
    wanted = [[1, 1, 1], [1, 0, NAN], [0, NAN, NAN], [NAN, NAN, NAN], [1, NAN, NAN]]
    assert np.array_equal(found, wanted, equal_nan=True)


def test_empty_text_is_no_label_and_codes_say_so():
    encoded = encode_chunk(
        chunk(click=["true", "1", None], seconds=["40", "n/a", "1"], purchase=["0", "0", "1"]), declared()
    )
    codes = label_codes(encoded.labels)
    assert codes.tolist() == [[1, 1, 0], [1, 2, 2], [2, 2, 2]]
    for labels in (codes, encoded.labels):
        assert counts_for(labels, 1).tolist() == [True, False, False]


def test_a_wrong_cell_is_an_error_though_the_row_does_not_count():
    with pytest.raises(
        DataError, match=r'c\.csv, row 2, column "purchase": the label is 7; it must be 0 or 1'
    ):
        labels_of(declared(), click=[1, 0], seconds=[1, 1], purchase=[0, 7])


def test_of_one_output_every_row_needs_a_label():
    one = declared([Output(name="click", label="click")])
    assert labels_of(one, click=[1, 0]) == [[1], [0]]
    with pytest.raises(DataError, match="the label is nothing; it must be 0 or 1"):
        labels_of(one, click=[1, None])


def test_a_column_of_two_labels_is_read_once_and_cannot_be_generated():
    stars = declared([Output(name="good", label="stars >= 3"), Output(name="best", label="stars >= 5")])
    assert declared_columns(stars)[0] == "stars"
    assert declared_columns(stars).count("stars") == 1
    assert labels_of(stars, stars=[2, 3, 5]) == [[0, 0], [1, 0], [1, 1]]
    with pytest.raises(DataError, match="several outputs have their labels from one column"):
        next(generate(stars, 10, 1))
