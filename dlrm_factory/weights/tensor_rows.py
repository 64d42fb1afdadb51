"""Row ranges of tensors in a safetensors file, read and not mapped.

A mapping's pages count as the process's memory once they were looked at: whoever converts a checkpoint of 100 GB would
seem to need 100 GB, and a limit on memory would end it.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import msgspec
import torch

from dlrm_factory.errors import WeightsError

__all__ = ["TensorRows"]

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_LENGTH_BYTES = 8


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class TensorRows:
    """The file is open as long as this lives."""

    def __init__(self, path: Path) -> None:
        """``path``: a file that `safetensors` itself has opened, so its header is known to be right. OSError."""
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        length = int.from_bytes(os.pread(self._file, _LENGTH_BYTES, 0), "little")
        header = msgspec.json.decode(os.pread(self._file, length, _LENGTH_BYTES), type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        self._tensors = {key: msgspec.json.decode(raw, type=_Tensor) for key, raw in header.items()}
        self._data = _LENGTH_BYTES + length

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the matrix ``key``: float32 [stop - start, D].

        WeightsError if the file was cut meanwhile, or the tensor does not hold floats.
        """
        tensor = self._tensors[key]
        if tensor.dtype not in _DTYPES:
            raise WeightsError(
                f'{self._path}: "{key}" holds {tensor.dtype}; weights are {", ".join(_DTYPES)}'
            )
        found = torch.empty(max(stop - start, 0), *tensor.shape[1:], dtype=_DTYPES[tensor.dtype])
        # As bytes: NumPy has no bfloat16, and torch gives no buffer itself.
        left = memoryview(found.reshape(-1).view(torch.uint8).numpy())
        row_bytes = found.element_size() * tensor.shape[1]
        offset = self._data + tensor.data_offsets[0] + start * row_bytes
        while left:
            done = os.preadv(self._file, [left], offset)
            if not done:
                raise WeightsError(f'{self._path}: ends within "{key}"; it was cut short')
            left, offset = left[done:], offset + done
        return found.float()
