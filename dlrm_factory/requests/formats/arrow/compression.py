"""Whether an Arrow stream has compressed buffers, which pyarrow reads without telling.

The metadata of a message is a flatbuffer: the root table is Message, whose fields are version, header_type, header;
a header of type RecordBatch is a table of length, nodes, buffers, compression; one of type DictionaryBatch holds
such a RecordBatch as its second field.
"""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["is_compressed"]

_HEADER_TYPE, _HEADER = 1, 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_DATA, _COMPRESSION = 1, 3


def is_compressed(raw: bytes, pyarrow: Any) -> bool:
    """Whether some message of the stream ``raw`` is. Whatever pyarrow raises, or ValueError, if it is damaged."""
    for message in pyarrow.ipc.MessageReader.open_stream(raw):
        try:
            if _is_compressed(message.metadata.to_pybytes()):
                return True
        except (struct.error, IndexError):
            raise ValueError("a message's metadata is damaged") from None
    return False


def _is_compressed(metadata: bytes) -> bool:
    message = _unsigned32(metadata, 0)
    kind_at, header_at = _field(metadata, message, _HEADER_TYPE), _field(metadata, message, _HEADER)
    if kind_at is None or header_at is None:
        return False
    kind, header = metadata[kind_at], _follow(metadata, header_at)
    if kind == _DICTIONARY_BATCH:
        data_at = _field(metadata, header, _DATA)
        if data_at is None:
            return False
        header = _follow(metadata, data_at)
    elif kind != _RECORD_BATCH:
        return False
    return _field(metadata, header, _COMPRESSION) is not None


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Where field ``number`` of the table lies, None if it has its default."""
    (back,) = struct.unpack_from("<i", metadata, table)
    vtable = table - back
    if vtable < 0:
        raise IndexError
    (size,) = struct.unpack_from("<H", metadata, vtable)
    entry = 4 + 2 * number
    if entry + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, vtable + entry)
    return table + offset if offset else None


def _follow(metadata: bytes, at: int) -> int:
    return at + _unsigned32(metadata, at)


def _unsigned32(metadata: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", metadata, at)[0]
    return value
