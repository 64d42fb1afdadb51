"""The answers of a batch: the bytes that TorchServe's protocol module writes, put together from fewer pieces."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from handler.request import REQUEST_ID
from handler.wire.read_ahead import Observers

__all__ = ["answer_writer", "error_tail"]

_INT = struct.Struct("!i")
_END = _INT.pack(-1)
_TYPE = "content-type"
# Headers that the handler sets beside the type: of calls by gRPC, and of requests with an id.
_STREAM = "ts_stream_next"
_KNOWN = frozenset({_TYPE, _STREAM, REQUEST_ID})


def answer_writer(plain: Callable[..., Any], observers: Observers | None = None) -> Callable[..., Any]:
    """Stand-in for ``plain``, TorchServe's `create_predict_response`, to which it leaves whatever is unusual.

    ``observers``: of writes, told when the answers are made, which TorchServe sends at once.
    """

    def write(
        ret: Sequence[Any] | None,
        req_id_map: Mapping[int, str],
        message: str,
        code: int,
        context: Any = None,
        ts_stream_next: bool = False,
    ) -> Any:
        written = None
        if not ts_stream_next and ret is not None and context is not None and not context.stopping_criteria:
            written = _write(ret, req_id_map, message, code, context)
        if written is None:
            written = plain(ret, req_id_map, message, code, context, ts_stream_next)
        for note in () if observers is None else observers.writes:
            note()
        return written

    return write


def error_tail(status: int, phrase: str, content_type: str, body: bytes) -> bytes:
    """Bytes of an answer behind its request's id."""
    return b"".join([_head(status, phrase, content_type, True), _INT.pack(len(body)), body])


def _write(ret: Sequence[Any], ids: Mapping[int, str], message: str, code: int, context: Any) -> bytes | None:
    """Bytes of all answers; None for other ranks than the first, and for other headers or values to be encoded."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    text = message.encode("utf-8")
    parts = [_INT.pack(code), _INT.pack(len(text)), text]
    for index, request_id in ids.items():
        body, headers = ret[index], context.get_response_headers(index)
        if type(body) is not bytes or _TYPE not in headers:
            return None
        # TorchServe changes "true" to "false".
        if len(headers) > 1 and not (headers.keys() <= _KNOWN and headers.get(_STREAM) != "true"):
            return None
        name = request_id.encode("utf-8")
        status = context.get_response_status(index)
        if len(headers) == 1:
            parts += (_INT.pack(len(name)), name, _head(*status, headers[_TYPE], True))
        else:
            parts += (_INT.pack(len(name)), name, _head(*status, headers[_TYPE], False))
            parts += (_INT.pack(len(headers)), *(_field(text) for pair in headers.items() for text in pair))
        parts += (_INT.pack(len(body)), body)
    parts.append(_END)
    return b"".join(parts)


@lru_cache(maxsize=256)
def _head(status: int | None, phrase: str | None, content_type: str, alone: bool) -> bytes:
    """Between a request's id and its headers: type, status, phrase; with ``alone`` also the one header, the type."""
    # TorchServe counts characters here, and writes UTF-8.
    phrase = phrase or ""
    parts = [_INT.pack(len(content_type)), content_type.encode("utf-8")]
    parts += [_INT.pack(200 if status is None else status), _INT.pack(len(phrase)), phrase.encode("utf-8")]
    if alone:
        parts += [_INT.pack(1), _field(_TYPE), _field(content_type)]
    return b"".join(parts)


def _field(text: str) -> bytes:
    raw = text.encode("utf-8")
    return _INT.pack(len(raw)) + raw
