"""How often a byte occurs, in long texts some times faster than bytes.count."""

from __future__ import annotations

import numpy as np

__all__ = ["count_byte"]


_SHORT = 4096


def count_byte(raw: bytes, character: str) -> int:
    """Occurrences of ``character``, of ASCII, in ``raw``."""
    if len(raw) < _SHORT:
        return raw.count(ord(character))
    return int(np.count_nonzero(np.frombuffer(raw, dtype=np.uint8) == ord(character)))
