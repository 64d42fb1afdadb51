"""One request → its samples, by the fastest reader that knows its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dlrm_factory.requests.formats import DecodedRequest, RequestReader, decode_body
from dlrm_factory.requests.formats.arrow import MEDIA_TYPE, decode_arrow, looks_like_arrow, pyarrow
from dlrm_factory.requests.formats.fast import FastReaders, Gathered, ReadCounts
from dlrm_factory.requests.formats.kserve.binary import JSON_LENGTH, cut_tensors, split_body
from dlrm_factory.requests.formats.shape import Encoding, PlainForm
from dlrm_factory.requests.request import Ask, Request, read_bytes, read_object

__all__ = ["RequestDecoder"]

# Headers that may say that a body, or its answer, is not plain JSON.
_FORMAT_HEADERS = {"accept", "content-type", JSON_LENGTH}
_MAX_NAMES_KEPT = 64


class RequestDecoder:
    """Decodes requests for one model. For one thread at a time."""

    def __init__(self, reader: RequestReader, max_body_bytes: int) -> None:
        self._reader = reader
        self._max_body_bytes = max_body_bytes
        self._fast = FastReaders(reader)
        self._max_gathered_bytes = min(max_body_bytes, self._fast.max_gathered_bytes)
        self._format_headers: dict[tuple[str, ...], list[str]] = {}

    @property
    def counts(self) -> ReadCounts:
        """Requests so far, by the reader that took them."""
        return self._fast.counts

    def gather(self, requests: Sequence[Request]) -> list[Gathered]:
        """Those of ``requests`` that hold one sample and nothing wrong or unusual, read together; places are theirs."""
        bodies = []
        for place, request in enumerate(requests):
            raw = request.body
            if (
                isinstance(raw, (bytes, bytearray))
                and len(raw) <= self._max_gathered_bytes
                and request.ask is Ask.SCORES
                and request.mistake is None
                and self._is_plain(request.headers)
            ):
                bodies.append((place, raw))
        return self._fast.gather(bodies) if bodies else []

    def decode(self, request: Request) -> DecodedRequest:
        """The request's samples. RequestError, or LimitError, with its mistakes."""
        headers = request.headers
        decoded = self._decode(read_bytes(request, self._max_body_bytes), headers)
        self._reader.outputs.check_size(decoded.asked.names, len(decoded.batch))
        if MEDIA_TYPE not in _header(headers, "accept"):
            return decoded
        pyarrow()  # here, where its absence is this request's own error
        if decoded.form is not PlainForm.PREDICTIONS:
            return decoded
        return replace(decoded, encoding=Encoding.ARROW)

    def _is_plain(self, headers: Mapping[str, Any]) -> bool:
        """True if ``headers`` say no more than that JSON comes, and scores are wanted in JSON."""
        names = tuple(headers)
        format_headers = self._format_headers.get(names)
        if format_headers is None:
            format_headers = [name for name in names if name.lower() in _FORMAT_HEADERS]
            if len(self._format_headers) < _MAX_NAMES_KEPT:  # a client sends the same names again and again
                self._format_headers[names] = format_headers
        for name in format_headers:
            if MEDIA_TYPE in str(headers[name]).lower() or name.lower() == JSON_LENGTH:
                return False
        return True

    def _decode(self, raw: Any, headers: Mapping[str, Any]) -> DecodedRequest:
        if isinstance(raw, bytes):
            length = _header(headers, JSON_LENGTH)
            if length:
                return self._decode_binary(raw, length)
            if looks_like_arrow(raw) or _header(headers, "content-type").startswith(MEDIA_TYPE):
                return decode_arrow(raw, self._reader)
            found = self._fast.read(raw)
            if found is not None:
                return found
        self.counts.reference += 1
        return decode_body(read_object(raw), self._reader)

    def _decode_binary(self, raw: bytes, length: str) -> DecodedRequest:
        sent, rest = split_body(raw, length)
        body = read_object(sent)
        cut_tensors(body, rest)
        return decode_body(body, self._reader)


def _header(headers: Mapping[str, Any], name: str) -> str:
    """The header's value in lower case; HTTP leaves the case of its name to the client."""
    value = headers.get(name.title())
    if value is None:
        value = next((value for key, value in headers.items() if key.lower() == name), "")
    return str(value).lower()
