"""Tensors into a safetensors file, a block at a time.

The bytes are those of `safetensors.torch.save_file`, which looks at all tensors at once: pages of mapped ones stay in
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from dlrm_factory.host.mapped_pages import MappedPages

__all__ = ["write_tensors"]

_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = list(_DTYPES)  # the format's own order of dtypes; the widest come first in a file
_BLOCK = 4 << 20  # bytes


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], *, release: bool = False
) -> None:
    """Write contiguous ``tensors`` on the CPU to ``path``. OSError if the disk is full.

    ``release``: give back the pages of tensors that are mapped from files, see `MappedPages`.
    """
    names = sorted(tensors, key=lambda name: (-_ORDER.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb", buffering=0) as file:
        _write(file, memoryview(len(encoded).to_bytes(8, "little") + encoded))
        for name in names:
            data = tensors[name].reshape(-1).view(torch.uint8)
            pages = MappedPages(data) if release else None
            for block in data.split(_BLOCK):
                _write(file, memoryview(block.numpy()))
                if pages is not None:
                    pages.release(block)


def _write(file: Any, left: memoryview) -> None:
    """Write all of it: an unbuffered file may take a part at a time."""
    while left:
        left = left[file.write(left) :]
