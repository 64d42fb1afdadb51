"""Ring of the latest scores of requests whose client gave an id, so that labels which come later can be joined.

::

    <pid>.scores
    | magic | scores ever written | records: key, logit, time ... |
      8       8                     16 each

A key stands for the request's id and the place of the sample in the request; the id itself is not kept.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["MAX_SCORES", "RECORD", "SCORES_SUFFIX", "ScoreLog", "keys_of", "read_scores"]

SCORES_SUFFIX = ".scores"
MAX_SCORES = 1 << 20  # of one worker: 16 MiB, of which only what is written takes room
RECORD = np.dtype([("key", "<u8"), ("logit", "<f4"), ("time", "<u4")])
_MAGIC = b"DLRMSCO1"
_HEAD = 16
_STEP = np.uint64(0x9E3779B97F4A7C15)

Records = npt.NDArray[np.void]


def keys_of(request_id: str, places: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Keys of the samples at ``places``, uint64 [n], of a request."""
    with np.errstate(over="ignore"):
        return np.uint64(xxhash.xxh3_64_intdigest(request_id.encode())) + places * _STEP


class ScoreLog:
    """Ring of one worker, mapped to be written."""

    def __init__(self, path: Path, *, capacity: int = MAX_SCORES) -> None:
        """Make ``path`` empty. OSError if it cannot be."""
        size = _HEAD + capacity * RECORD.itemsize
        partial = path.with_suffix(".scores-partial")
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(handle, size)
            self._map = mmap.mmap(handle, size)
        finally:
            os.close(handle)
        self._map[: len(_MAGIC)] = _MAGIC
        self._written = np.frombuffer(self._map, dtype="<u8", count=1, offset=len(_MAGIC))
        self._records = np.frombuffer(self._map, dtype=RECORD, offset=_HEAD)
        partial.rename(path)

    def write(self, request_id: str, logits: npt.NDArray[np.float32], now: float) -> None:
        """Keep ``logits``, float32 [n], of a request's samples in order; the oldest scores make room."""
        size = len(self._records)
        logits = logits[:size]
        start = int(self._written[0])
        places = (start + np.arange(len(logits))) % size
        self._records["key"][places] = keys_of(request_id, np.arange(len(logits), dtype=np.uint64))
        self._records["logit"][places] = logits
        self._records["time"][places] = int(now)
        self._written[0] = start + len(logits)


def read_scores(paths: Sequence[Path]) -> Records:
    """Records of all ``paths``, the latest last; files that are no rings are passed over."""
    found = [_read(path) for path in paths]
    records = np.concatenate([np.empty(0, dtype=RECORD), *found])
    return records[np.argsort(records["time"], kind="stable")]


def _read(path: Path) -> Records:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if head[: len(_MAGIC)] != _MAGIC:
                return np.empty(0, dtype=RECORD)
            written = int.from_bytes(head[len(_MAGIC) :], "little")
            size = (os.fstat(file.fileno()).st_size - _HEAD) // RECORD.itemsize
            data = file.read(min(written, size) * RECORD.itemsize)
    except OSError:
        return np.empty(0, dtype=RECORD)
    records = np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], dtype=RECORD)
    return np.roll(records, -(written % size)) if written > size else records
