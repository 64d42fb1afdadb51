"""How often a byte occurs, some times faster than bytes.count."""

from __future__ import annotations

import numpy as np

__all__ = ["count_byte"]


def count_byte(raw: bytes, character: str) -> int:
    """Occurrences of ``character``, of ASCII, in ``raw``."""
    return int(np.count_nonzero(np.frombuffer(raw, dtype=np.uint8) == ord(character)))
