"""Pages of mapped files, given back once they are done with.

A mapping's pages count as the process's memory once they were looked at, and stay until memory is short: whoever reads
100 GB through a mapping seems to need 100 GB, and a limit on memory would end it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["MappedPages"]

_MAPS = Path("/proc/self/maps")
_SMALL = 1 << 20  # bytes; so little need not be given back

Span = tuple[int, int]  # first address, and the one behind the last


class MappedPages:
    """The part of a tensor's memory that is mapped from files; memory of the process's own is never touched.

    Pages that are given back are read again from the page cache, or from disk, when they are asked for. A shared
    mapping keeps what was written to it; a private one loses that, so nobody may have written to a private one.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        span = _span(tensor)
        self._mapped = list(_file_mappings(*span)) if span[1] - span[0] > _SMALL else []

    def release(self, part: torch.Tensor) -> None:
        """Give back the pages of ``part``, a view of the tensor."""
        first, last = _span(part)
        for start, end in self._mapped:
            # Whole pages around it: bounds of a mapping are pages' bounds.
            low = max(start, first // mmap.PAGESIZE * mmap.PAGESIZE)
            high = min(end, -(-last // mmap.PAGESIZE) * mmap.PAGESIZE)
            if low < high:  # advice alone: what the kernel answers does not matter
                _madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), mmap.MADV_DONTNEED)


def _span(tensor: torch.Tensor) -> Span:
    """The addresses from the first to the last element, whatever the strides."""
    first = tensor.data_ptr()
    if not tensor.numel():
        return first, first
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (reach + 1) * tensor.element_size()


def _file_mappings(first: int, last: int) -> Iterator[Span]:
    """Mappings of files that overlap [first, last). None where the kernel does not tell."""
    try:
        lines = _MAPS.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:  # 7f1c2000-7f1c3000 rw-p 00000000 fe:00 1234 /path
        addresses, _, _, _, inode = line.split(maxsplit=5)[:5]
        start, end = (int(address, 16) for address in addresses.split("-"))
        if inode != "0" and start < last and first < end:
            yield start, end


_madvise = ctypes.CDLL(None, use_errno=True).madvise
