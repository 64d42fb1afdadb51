"""Rows of a checkpoint's tensors, read a range at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dlrm_factory.errors import WeightsError
from dlrm_factory.weights.tensor_rows import TensorRows

MATRIX = torch.arange(40.0).reshape(10, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_range_of_rows_of_any_float(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.ones(3), "m": MATRIX.to(dtype), "z": torch.ones(5)}, tmp_path / "f", {"k": "v"})
    rows = TensorRows(tmp_path / "f")
    for start, stop in ((0, 10), (3, 7), (9, 10), (4, 4)):
        found = rows.rows("m", start, stop)
        assert found.dtype == torch.float32
        assert torch.equal(found, MATRIX[start:stop])


def test_integers_are_no_weights(tmp_path: Path) -> None:
    save_file({"m": torch.ones(2, 2, dtype=torch.int32)}, tmp_path / "f")
    with pytest.raises(WeightsError, match='"m" holds I32; weights are F32'):
        TensorRows(tmp_path / "f").rows("m", 0, 1)


def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    save_file({"m": MATRIX}, tmp_path / "f")
    rows = TensorRows(tmp_path / "f")
    with (tmp_path / "f").open("r+b") as file:
        file.truncate((tmp_path / "f").stat().st_size - 20)
    assert torch.equal(rows.rows("m", 0, 5), MATRIX[:5])
    with pytest.raises(WeightsError, match='ends within "m"; it was cut short'):
        rows.rows("m", 5, 10)
