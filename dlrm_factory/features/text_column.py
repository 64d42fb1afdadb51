"""Ids that are text, in one block of bytes, so that many are compared in a few array operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.jagged_indices import jagged_indices
from dlrm_factory.features.ids import canonical_int, integers_among

__all__ = ["TextColumn", "text_bytes"]

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

_END = b"\0"  # so that the empty text still has a byte, and an integer has none


def text_bytes(raw: int | str) -> bytes:
    """Bytes that tell ``raw`` from any other id with its hash: none for an integer, or for text that is one."""
    if not isinstance(raw, str) or ((raw.isdecimal() or raw[:1] == "-") and canonical_int(raw) is not None):
        return b""
    return raw.encode() + _END


class TextColumn:
    """N texts: bytes ``starts[i]`` to ``stops[i]`` of ``blob``. No bytes stand for an integer."""

    def __init__(
        self, blob: UInt8, starts: npt.NDArray[np.unsignedinteger], stops: npt.NDArray[np.unsignedinteger]
    ) -> None:
        self._blob = blob
        self._starts = starts
        self._stops = stops

    @classmethod
    def of(cls, ids: Sequence[int | str]) -> TextColumn:
        """The texts of raw ids. UnicodeEncodeError for half a surrogate pair."""
        only_text = set(map(type, ids)) == {str}
        strings = cast("Sequence[str]", ids) if only_text else [r if isinstance(r, str) else "" for r in ids]
        texts = list(map(str.encode, strings))
        stops = np.cumsum(np.fromiter(map(len, texts), dtype=np.uint64, count=len(texts)) + np.uint64(1))
        starts = np.concatenate((np.zeros(1, dtype=np.uint64), stops[:-1]))
        integers = list(integers_among(strings))
        if not only_text:
            integers += [i for i, raw in enumerate(ids) if not isinstance(raw, str)]
        stops[integers] = starts[integers]
        return cls(np.frombuffer(_END.join([*texts, b""]), dtype=np.uint8), starts, stops)

    def equal(self, mine: Int64, other: TextColumn, theirs: Int64) -> npt.NDArray[np.bool_]:
        """Compare text ``mine[i]`` with text ``theirs[i]`` of ``other``: bool [len(mine)]."""
        lengths = self.lengths(mine)
        same = lengths == other.lengths(theirs)
        compared = np.flatnonzero(same & (lengths > 0))
        if len(compared):
            lengths = lengths[compared]
            bytes_equal = (
                self._blob[jagged_indices(self._starts[mine[compared]], lengths)]
                == other._blob[jagged_indices(other._starts[theirs[compared]], lengths)]
            )
            if not bytes_equal.all():
                same[compared] = np.logical_and.reduceat(bytes_equal, np.cumsum(lengths) - lengths)
        return same

    def lengths(self, at: Int64) -> Int64:
        """Bytes of the texts ``at``; 0 for an integer."""
        return (self._stops[at] - self._starts[at]).astype(np.int64)
