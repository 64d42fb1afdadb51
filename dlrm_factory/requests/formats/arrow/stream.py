"""Bytes → an Arrow table that is safe to look at."""

from __future__ import annotations

from functools import cache
from typing import Any

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.formats.arrow.compression import is_compressed

__all__ = ["MEDIA_TYPE", "looks_like_arrow", "pyarrow", "read_table"]

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

# Every message of the format starts with it since 2019. No JSON does.
_CONTINUATION = b"\xff\xff\xff\xff"


def looks_like_arrow(raw: bytes) -> bool:
    """Whether ``raw`` starts as an Arrow stream does, whatever the request calls it."""
    return raw.startswith(_CONTINUATION)


@cache
def pyarrow() -> Any:
    """The package, loaded when first needed: few servers take Arrow. RequestError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
    except ImportError:
        raise RequestError(
            "this server cannot read Arrow, for pyarrow is not installed there; send JSON, or install pyarrow"
        ) from None
    return pyarrow


def read_table(raw: bytes) -> Any:
    """The record batches in ``raw`` as one table, its buffers within ``raw``. RequestError if they are damaged."""
    pa = pyarrow()
    try:
        if is_compressed(raw, pa):
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
