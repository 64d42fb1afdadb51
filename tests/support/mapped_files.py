"""Pages of files in memory: those that this process has mapped, and those in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def resident(path: Path) -> int:
    """Bytes of ``path`` that this process has in memory, copies of private mappings counted."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [place for place, line in enumerate(lines) if line.endswith(str(path))]
    rss = (next(line for line in lines[start:] if line.startswith("Rss:")) for start in starts)
    return sum(int(line.split()[1]) << 10 for line in rss)


def cached(path: Path) -> int:
    """Bytes of ``path`` in the page cache, whoever brought them there."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        size = len(mapping)
        pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        if _mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages.ctypes.data_as(ctypes.c_void_p)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int((pages & 1).sum()) * mmap.PAGESIZE


_mincore = ctypes.CDLL(None, use_errno=True).mincore
