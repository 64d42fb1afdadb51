"""Files without a name for arrays that memory cannot hold. They are gone when the process is, however it ends."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.errors import DataError

__all__ = ["Scratch", "ScratchArray", "default_folder"]


def default_folder() -> Path:
    """``$TMPDIR``, else ``/var/tmp``, which is on a disk where ``/tmp`` may be memory."""
    given = os.environ.get("TMPDIR")
    return Path(given) if given else Path("/var/tmp")


class Scratch:
    """Makes arrays on disk in one folder."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder if need be. DataError if it cannot be written."""
        self.folder = folder
        self.bytes = 0
        self._open: list[ScratchArray] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written: {error.strerror}; give --scratch another folder"
            ) from None

    def array(self, dtype: npt.DTypeLike) -> ScratchArray:
        """An empty one."""
        array = ScratchArray(self, np.dtype(dtype))
        self._open.append(array)
        return array

    def close(self) -> None:
        """Give up the arrays that are not mapped yet; the mapped ones stay."""
        for array in self._open:
            array.close()
        self._open.clear()

    def stored(
        self, parts: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike
    ) -> tuple[npt.NDArray[Any], mmap.mmap | None]:
        """``parts`` one after another, see `ScratchArray.mapped`."""
        array = self.array(dtype)
        for part in parts:
            array.append(part)
        return array.mapped()


class ScratchArray:
    """Grows at its end; then it is mapped."""

    def __init__(self, scratch: Scratch, dtype: np.dtype[Any]) -> None:
        self._scratch, self._dtype = scratch, dtype
        # Linux makes it without a name (O_TMPFILE), so nothing is left behind even by a kill.
        self._file = tempfile.TemporaryFile(dir=scratch.folder, buffering=0)  # noqa: SIM115

    def append(self, values: npt.NDArray[Any]) -> None:
        """DataError if the disk is full."""
        data = memoryview(np.ascontiguousarray(values, dtype=self._dtype).reshape(-1).view(np.uint8).data)
        while len(data):
            try:
                written = self._file.write(data)
            except OSError as error:
                raise self._failed(error) from None
            self._scratch.bytes += written
            data = data[written:]

    def mapped(self) -> tuple[npt.NDArray[Any], mmap.mmap | None]:
        """All values, and the mapping they lie in; None for an empty array. Nothing can be appended any more."""
        try:
            size = os.fstat(self._file.fileno()).st_size
            mapping = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except OSError as error:
            raise self._failed(error) from None
        self.close()
        if mapping is None:
            return np.empty(0, dtype=self._dtype), None
        return np.frombuffer(mapping, dtype=self._dtype), mapping

    def close(self) -> None:
        """What was appended is gone, unless it is mapped."""
        self._file.close()

    def _failed(self, error: OSError) -> DataError:
        folder, written = self._scratch.folder, format_bytes(self._scratch.bytes)
        self._scratch.close()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return DataError(
                f"{folder}: is full after {written} of encoded rows; "
                "make room there, give --scratch a folder on a larger disk, or read fewer --rows"
            )
        return DataError(f"{folder}: cannot be written: {error.strerror}; give --scratch another folder")
