"""Criteo's files, and those that are refused."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pytest

from dlrm_factory.config import criteo
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data import files
from dlrm_factory.tools.data.encoding import encode_chunk
from dlrm_factory.tools.data.files import CRITEO_COLUMNS, ClickFiles, declared_columns, layout_of

LINE = "\t".join(["1", "", "-2", "3", *["7"] * 10, "68fd1e64", "", *["0b153874"] * 24])
OTHER = "\t".join(["0", *["0"] * 13, *["05db9164"] * 26])


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(files, "_reported", set())


@pytest.mark.parametrize("name", ["train.txt", "day_0", "day_1.gz", "clicks.tsv"])
def test_a_file_of_criteo_is_known_by_its_first_line(tmp_path, caplog, name):
    path = tmp_path / name
    text = f"{LINE}\n{OTHER}\n".encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with caplog.at_level(logging.WARNING):
        (chunk,) = ClickFiles([path]).chunks(CRITEO_COLUMNS)
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [str(path)]
    columns = chunk.columns.to_pydict()
    assert columns["label"] == ["1", "0"]
    assert (columns["I1"], columns["I2"], columns["C1"]) == (
        [None, "0"],
        ["-2", "0"],
        ["68fd1e64", "05db9164"],
    )
    assert columns["C2"] == [None, "05db9164"]


def test_the_raw_preset_takes_it(tmp_path):
    path = tmp_path / "day_0"
    path.write_text(f"{LINE}\n{OTHER}\n")
    declaration = criteo(cap=100, raw=True)
    (chunk,) = ClickFiles([path]).chunks(declared_columns(declaration))
    encoded = encode_chunk(chunk, declaration)
    assert encoded.labels[:, 0].tolist() == [1, 0]
    assert encoded.dense[0, :3].tolist() == pytest.approx([0, 0, np.log(4)])
    assert [bags.lengths.tolist() for bags in encoded.bags[:3]] == [[1, 1], [0, 1], [1, 1]]


def test_text_with_a_quotation_mark_is_left_as_it_is_when_the_format_is_named(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text(LINE.replace("68fd1e64", '"68fd') + "\n")
    (chunk,) = ClickFiles([path], "criteo").chunks(["C1"])
    assert chunk.columns.to_pydict() == {"C1": ['"68fd']}


def test_a_header_makes_it_tabs_as_usual(tmp_path, caplog):
    path = tmp_path / "clicks.tsv"
    path.write_text("\t".join(CRITEO_COLUMNS) + f"\n{LINE}\n")
    (chunk,) = ClickFiles([path]).chunks(["label"])
    assert chunk.columns.to_pydict() == {"label": ["1"]}
    assert caplog.records == []


@pytest.mark.parametrize("file_format", ["auto", "criteo"])
def test_a_test_file_has_no_labels(tmp_path, file_format):
    path = tmp_path / "test.txt"
    path.write_text(LINE[2:] + "\n")
    with pytest.raises(DataError, match="39 columns, as Criteo's test files without labels"):
        layout_of(path, file_format)


def test_a_named_format_is_checked(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text("click,price\n1,2\n")
    with pytest.raises(
        DataError, match="its first line has 1 cells separated by tabs; Criteo's files have 40"
    ):
        layout_of(path, "criteo")
    with pytest.raises(DataError, match="there is no such file"):
        layout_of(tmp_path / "gone", "criteo")


def test_a_named_format_beats_the_name(tmp_path):
    path = tmp_path / "export.dat"
    path.write_text("click,price\n1,2\n")
    assert ClickFiles([path], "csv").column_names() == ["click", "price"]
    with pytest.raises(DataError, match="neither CSV nor Parquet nor Criteo's"):
        ClickFiles([path])
