"""The answers of a batch: the bytes that TorchServe's protocol module writes, put together from fewer pieces."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

__all__ = ["answer_writer"]

_INT = struct.Struct("!i")
_END = _INT.pack(-1)
_TYPE = "content-type"
_STREAM = ("ts_stream_next", "false")  # before the type in answers by gRPC


def answer_writer(plain: Callable[..., Any]) -> Callable[..., Any]:
    """What does as ``plain``, TorchServe's `create_predict_response`, and leaves to it whatever is unusual."""

    def write(
        ret: Sequence[Any] | None,
        req_id_map: Mapping[int, str],
        message: str,
        code: int,
        context: Any = None,
        ts_stream_next: bool = False,
    ) -> Any:
        if not ts_stream_next and ret is not None and context is not None and not context.stopping_criteria:
            written = _write(ret, req_id_map, message, code, context)
            if written is not None:
                return written
        return plain(ret, req_id_map, message, code, context, ts_stream_next)

    return write


def _write(ret: Sequence[Any], ids: Mapping[int, str], message: str, code: int, context: Any) -> bytes | None:
    """None for other ranks than the first, and for answers with headers of their own or values to be encoded."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    text = message.encode("utf-8")
    parts = [_INT.pack(code), _INT.pack(len(text)), text]
    for index, request_id in ids.items():
        body, headers = ret[index], context.get_response_headers(index)
        streams = len(headers) == 2 and next(iter(headers.items())) == _STREAM
        if type(body) is not bytes or not (streams or len(headers) == 1) or _TYPE not in headers:
            return None
        name = request_id.encode("utf-8")
        head = _head(*context.get_response_status(index), headers[_TYPE], streams)
        parts += (_INT.pack(len(name)), name, head, _INT.pack(len(body)), body)
    parts.append(_END)
    return b"".join(parts)


@lru_cache(maxsize=256)
def _head(status: int | None, phrase: str | None, content_type: str, streams: bool) -> bytes:
    """Between a request's id and its body: type, status, phrase, and headers, the last of which is the type again."""
    # TorchServe counts characters here, and writes UTF-8.
    phrase = phrase or ""
    parts = [_INT.pack(len(content_type)), content_type.encode("utf-8")]
    parts += [_INT.pack(200 if status is None else status), _INT.pack(len(phrase)), phrase.encode("utf-8")]
    fields = (*(_STREAM if streams else ()), _TYPE, content_type)
    parts.append(_INT.pack(len(fields) // 2))
    for field in fields:
        raw = field.encode("utf-8")
        parts += [_INT.pack(len(raw)), raw]
    return b"".join(parts)
