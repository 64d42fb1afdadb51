"""Which quick reader may know a body."""

from __future__ import annotations

from dlrm_factory.requests.formats import DecodedRequest, RequestReader
from dlrm_factory.requests.formats.columns.fast import ColumnsReader
from dlrm_factory.requests.formats.fast.memory import keep_freed_memory
from dlrm_factory.requests.formats.rows.fast import RowsReader

__all__ = ["FastReader"]

# The key that tells the shape stands early, unless "output" is written before it.
_WITHIN = 64


class FastReader:
    """Reads ``inputs`` and ``instances`` whose values are numbers."""

    def __init__(self, reader: RequestReader) -> None:
        keep_freed_memory()
        self._columns = ColumnsReader(reader)
        self._rows = RowsReader(reader)

    def read(self, raw: bytes) -> DecodedRequest | None:
        """The request in ``raw``, or None if only the reference reader can tell."""
        if raw.find(b'"inputs"', 0, _WITHIN) >= 0:
            return self._columns.read(raw)
        if raw.find(b'"instances"', 0, _WITHIN) >= 0:
            return self._rows.read(raw)
        return None
