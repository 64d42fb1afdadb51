"""Freed memory that stays with the process."""

from __future__ import annotations

import numpy as np

__all__ = ["keep_freed_memory"]

_BLOCK_BYTES = 4 << 20


def keep_freed_memory() -> None:
    """Let the allocator keep what one request frees for the next: at most twice `_BLOCK_BYTES`.

    glibc gives blocks of some 100 KB back to the kernel at once, and takes them again, page by page, for the next
    request; that is a third of the time of reading one. It stops once a larger block has been freed.
    """
    np.empty(_BLOCK_BYTES, dtype=np.uint8)
