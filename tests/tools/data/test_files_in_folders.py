from __future__ import annotations

import pytest

from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.files import files_of


def test_a_folder_is_its_files_in_natural_order_without_hidden_ones(tmp_path):
    names = ["day_10", "day_2", "day_2b", "_SUCCESS", ".part.crc", "b/part-0", "b/_temporary/x", "a.csv"]
    for name in names:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = files_of([tmp_path / "data"])
    assert [str(path.relative_to(tmp_path / "data")) for path in found] == [
        "a.csv",
        "b/part-0",
        "day_2",
        "day_2b",
        "day_10",
    ]


def test_files_stay_in_the_order_given(tmp_path):
    paths = [tmp_path / name for name in ("b.csv", "_a.csv", "gone.csv")]
    assert files_of(paths) == paths


def test_a_file_given_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match="is given twice"):
        files_of([tmp_path, tmp_path / "a.csv"])


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(DataError, match="holds no file"):
        files_of([tmp_path])
