"""Bytes → an Arrow table that is safe to look at."""

from __future__ import annotations

import struct
from typing import Any

from dlrm_factory.errors import RequestError
from dlrm_factory.features import arrow

__all__ = ["MEDIA_TYPE", "looks_like_arrow", "pyarrow", "read_table"]

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

# Every message of the format starts with it since 2019. No JSON does.
_CONTINUATION = b"\xff\xff\xff\xff"

# The metadata of a message is a flatbuffer: the root table is Message, whose fields are version, header_type, header;
# a header of type RecordBatch is a table of length, nodes, buffers, compression; one of type DictionaryBatch holds
# such a RecordBatch as its second field.
_HEADER_TYPE, _HEADER = 1, 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_DATA, _COMPRESSION = 1, 3


def looks_like_arrow(raw: bytes) -> bool:
    """Test whether ``raw`` starts as an Arrow stream does, whatever the request calls it."""
    return raw.startswith(_CONTINUATION)


def pyarrow() -> Any:
    """Package pyarrow, loaded when first needed: few servers take Arrow. RequestError if it is not installed."""
    try:
        return arrow.pyarrow()
    except ImportError:
        raise RequestError(
            "this server cannot read Arrow, for pyarrow is not installed there; send JSON, or install pyarrow"
        ) from None


def read_table(raw: bytes) -> Any:
    """Record batches in ``raw`` as one table, its buffers within ``raw``. RequestError if they are damaged."""
    pa = pyarrow()
    try:
        if _has_compressed_buffers(raw, pa):
            # A small body could ask for more memory than the machine has.
            raise RequestError(
                "the Arrow stream is compressed, which is not taken; write it without compression"
            )
        with pa.ipc.open_stream(raw, options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
            table = reader.read_all()
        # Offsets and text come from outside: what they point to is looked at only after this.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RequestError(
            f"the body is not an Arrow stream: {reason}; write it with pyarrow.ipc.new_stream or the like"
        ) from None
    return table


def _has_compressed_buffers(raw: bytes, pyarrow: Any) -> bool:
    """Look for compressed buffers, which pyarrow reads without telling, in the stream ``raw``.

    Raises what pyarrow does, or ValueError, if the stream is damaged.
    """
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
    """Offset of field ``number`` of the table; None if it has its default."""
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
