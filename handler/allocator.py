"""How the C library hands out the memory of batches."""

from __future__ import annotations

import ctypes
import logging

__all__ = ["KEPT_BYTES", "MAPPED_ABOVE_BYTES", "keep_memory"]

logger = logging.getLogger(__name__)

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

MAPPED_ABOVE_BYTES = 32 * 1024 * 1024  # the most that glibc takes
KEPT_BYTES = 16 * 1024 * 1024


def keep_memory() -> bool:
    """Freed memory up to `KEPT_BYTES` stays with the process; False where the C library has no such setting.

    By default glibc gives the megabytes of each large batch back to the system, and the next batch pays for them
    again, a page fault for every 4 KiB. Settings of the environment (MALLOC_TRIM_THRESHOLD_ …) are overruled.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        logger.info("The C library has no mallopt; memory of large batches is taken anew for each")
        return False
    # Setting one of them also ends glibc's own guessing of both.
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_ABOVE_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
