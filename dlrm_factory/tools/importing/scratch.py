"""Room on disk for what cannot be passed through as it lies in the source."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType

import torch

from dlrm_factory.errors import WeightsError

__all__ = ["Scratch"]

_SMALL = 1 << 20  # elements; below it a tensor is made in memory
_COPY = 16 << 20


class Scratch:
    """A hidden folder beside the output, gone when the context ends. Tensors in it take page cache, not memory."""

    def __init__(self, beside: Path) -> None:
        try:
            beside.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".dlrm-import-", dir=beside))
        except OSError as error:
            raise WeightsError(f"{beside}: cannot be written: {error}") from None
        self._made = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def empty(self, shape: Sequence[int]) -> torch.Tensor:
        """A float32 tensor of ``shape`` to be written to. WeightsError if the disk has no room for it."""
        size = prod(shape)
        if size < _SMALL:
            return torch.empty(tuple(shape), dtype=torch.float32)
        path = self._path()
        try:
            with path.open("wb") as file:
                # A sparse file on a full disk would end the process when it is written to.
                os.posix_fallocate(file.fileno(), 0, 4 * size)
            return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(tuple(shape))
        except OSError as error:
            raise WeightsError(
                f"{self._folder.parent}: has no room for {4 * size} bytes on the way: {error}"
            ) from None
        finally:
            path.unlink(missing_ok=True)

    def copy(self, source: Path, offset: int, length: int) -> Path:
        """A file with the bytes [offset, offset + length) of ``source``; the caller deletes it."""
        path = self._path()
        try:
            with source.open("rb") as read, path.open("wb") as write:
                read.seek(offset)
                left = length
                while left:
                    block = read.read(min(left, _COPY))
                    if not block:
                        raise WeightsError(
                            f"{source}: ends before byte {offset + length}; it was cut short, fetch it again"
                        )
                    write.write(block)
                    left -= len(block)
        except OSError as error:
            raise WeightsError(f"{source}: cannot be copied on the way: {error}") from None
        return path

    def _path(self) -> Path:
        self._made += 1
        return self._folder / str(self._made)
