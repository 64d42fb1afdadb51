"""A safetensors file written a block at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlrm_factory.weights.tensor_writing import write_tensors

TENSORS = {
    "z": torch.arange(12.0).reshape(3, 4),
    "é": torch.tensor([True, False]),
    "flat": torch.arange(5, dtype=torch.int32),
    "wide": torch.arange(5),
    "double": torch.ones(2, dtype=torch.float64),
    "half": torch.ones(3, 1, dtype=torch.float16),
    "brain": torch.ones(3, dtype=torch.bfloat16),
    "short": torch.ones(3, dtype=torch.int16),
    "byte": torch.ones(3, dtype=torch.uint8),
    "signed": torch.ones(3, dtype=torch.int8),
    "one": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "a": torch.ones(1),
}


@pytest.mark.parametrize("metadata", [{}, {"k": 'lines\nand "quotes" \u00e9'}])
@pytest.mark.parametrize("release", [False, True])
def test_the_bytes_are_those_of_safetensors_itself(tmp_path: Path, metadata: dict, release: bool) -> None:
    write_tensors(tmp_path / "ours", TENSORS, metadata, release=release)
    save_file(TENSORS, tmp_path / "theirs", metadata or None)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    found = load_file(tmp_path / "ours")
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_a_tensor_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrm_factory.weights.tensor_writing._BLOCK", 7)
    write_tensors(tmp_path / "ours", TENSORS, {})
    save_file(TENSORS, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
