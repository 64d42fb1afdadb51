"""Blocks of a mapped dataset: read whole when they are first needed, and let go when there are too many."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dlrm_factory.tools.data.split import BLOCK_ROWS

__all__ = ["WINDOW_BLOCKS", "BlockPages"]

Int64 = npt.NDArray[np.int64]

# 1,048,576 rows. Also how far a mapped dataset is shuffled, so results depend on it: it is no option.
WINDOW_BLOCKS = 64

_READ_AHEAD = 128 << 10  # what Linux reads for one MADV_WILLNEED, at least


class BlockPages:
    """Which blocks are in use. Only a matter of speed and memory: the arrays can be read all the same."""

    def __init__(
        self,
        fixed: Sequence[tuple[mmap.mmap | None, int]],
        jagged: Sequence[tuple[mmap.mmap | None, int, Int64]],
        others: Sequence[mmap.mmap | None],
    ) -> None:
        """
        Args:
            fixed: mappings with so many bytes a row.
            jagged: mappings with so many bytes an item, and where each row's items begin, int64 [N + 1].
            others: mappings that are read from begin to end.
        """
        self._fixed, self._jagged, self._others = fixed, jagged, others
        self._order: mmap.mmap | None = None
        self._used: set[int] = set()

    def touch(self, rows: Int64) -> None:
        """``rows`` are about to be read."""
        blocks = set(np.unique(rows // BLOCK_ROWS).tolist())
        new = blocks - self._used
        if len(self._used) + len(new) > WINDOW_BLOCKS:
            self.let_go()
            new = blocks
        self._used |= new
        for block in sorted(new):
            self._read_ahead(block)

    def follow(self, order: mmap.mmap | None) -> None:
        """``order`` is the mapping of the epoch's order, in place of an earlier one."""
        self._order = order
        self.let_go()

    def let_go(self) -> None:
        """What the process holds is freed; what the page cache holds may stay there."""
        for mapping in self._mappings():
            mapping.madvise(mmap.MADV_DONTNEED)
        self._used = set()

    def _read_ahead(self, block: int) -> None:
        first, stop = block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS
        for mapping, size in self._fixed:
            _will_need(mapping, first * size, stop * size)
        for mapping, size, offsets in self._jagged:
            start, end = int(offsets[first]), int(offsets[min(stop, len(offsets) - 1)])
            _will_need(mapping, start * size, end * size)

    def _mappings(self) -> Iterator[mmap.mmap]:
        columns = (*(fixed[0] for fixed in self._fixed), *(jagged[0] for jagged in self._jagged))
        for mapping in (*columns, *self._others, self._order):
            if mapping is not None:
                yield mapping


def _will_need(mapping: mmap.mmap | None, start: int, stop: int) -> None:
    if mapping is None:
        return
    start -= start % mmap.PAGESIZE
    for begin in range(start, min(stop, len(mapping)), _READ_AHEAD):
        mapping.madvise(mmap.MADV_WILLNEED, begin, min(_READ_AHEAD, len(mapping) - begin))
