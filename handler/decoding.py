"""One request → its samples, by the quickest reader that knows its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from handler.arrow import MEDIA_TYPE, decode_arrow, looks_like_arrow, pyarrow
from handler.body import find_body, read_object
from handler.fast import FastReader
from handler.shapes import DecodedRequest, RequestReader, decode_body

__all__ = ["RequestDecoder"]


class RequestDecoder:
    """Decodes requests for one model. For one thread at a time."""

    def __init__(self, reader: RequestReader, max_body_bytes: int) -> None:
        self._reader = reader
        self._max_body_bytes = max_body_bytes
        self._fast = FastReader(reader)

    def decode(self, request: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> DecodedRequest:
        """The request's samples. RequestError, or LimitError, with its mistakes."""
        headers = headers or {}
        decoded = self._decode(find_body(request, self._max_body_bytes, headers), headers)
        if MEDIA_TYPE not in _header(headers, "accept"):
            return decoded
        pyarrow()  # here, where its absence is this request's own error
        return replace(decoded, arrow=True)

    def _decode(self, raw: Any, headers: Mapping[str, Any]) -> DecodedRequest:
        if not isinstance(raw, bytes):
            return decode_body(read_object(raw), self._reader)
        if looks_like_arrow(raw) or _header(headers, "content-type").startswith(MEDIA_TYPE):
            return decode_arrow(raw, self._reader)
        return self._fast.read(raw) or decode_body(read_object(raw), self._reader)


def _header(headers: Mapping[str, Any], name: str) -> str:
    """HTTP leaves the case of a header's name to the client."""
    value = headers.get(name.title())
    if value is None:
        value = next((value for key, value in headers.items() if key.lower() == name), "")
    return str(value).lower()
