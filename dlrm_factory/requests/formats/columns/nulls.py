"""Nulls of a JSON body → numbers that stand for them, which simdjson reads into a buffer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["STAND_IN", "mark_nulls"]

STAND_IN = -997  # as many characters as null; both an id and a dense value
_STAND_IN = str(STAND_IN).encode()
_NULL = b"null"


def _table(characters: bytes) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, dtype=np.bool_)
    table[list(characters)] = True
    return table


_BEFORE, _AFTER = _table(b"[,: \t\r\n"), _table(b"]},: \t\r\n")


def mark_nulls(raw: bytes) -> tuple[bytes, int]:
    """``raw`` with every null that stands as a value replaced by `STAND_IN`, and how many there were.

    A client may send the same number. So whoever reads the result counts the stand-ins: each null becomes one,
    and if there are no more than nulls, each is a null. A null within a string only makes the nulls too many.
    """
    text = np.frombuffer(raw, dtype=np.uint8)
    at = np.flatnonzero(text[1 : -len(_NULL)] == _NULL[0]) + 1
    for offset, letter in enumerate(_NULL[1:], start=1):
        at = at[text[at + offset] == letter]
    at = at[_BEFORE[text[at - 1]] & _AFTER[text[at + len(_NULL)]]]
    if not len(at):
        return raw, 0
    marked = text.copy()
    for offset, letter in enumerate(_STAND_IN):
        marked[at + offset] = letter
    return marked.tobytes(), len(at)
