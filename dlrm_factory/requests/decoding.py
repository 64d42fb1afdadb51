"""One request → its samples, by the quickest reader that knows its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dlrm_factory.requests.body import find_body, read_object
from dlrm_factory.requests.formats import DecodedRequest, RequestReader, decode_body
from dlrm_factory.requests.formats.arrow import MEDIA_TYPE, decode_arrow, looks_like_arrow, pyarrow
from dlrm_factory.requests.formats.fast import FastReader, Gathered, GatheringReader
from dlrm_factory.requests.formats.kserve.binary import JSON_LENGTH, cut_tensors, split_body

__all__ = ["RequestDecoder"]

# Headers that may ask for anything but scores in JSON.
_TELLING = {"accept", "content-type", "explain", "describe", JSON_LENGTH}
_MOST_NAMES_KEPT = 64


class RequestDecoder:
    """Decodes requests for one model. For one thread at a time."""

    def __init__(self, reader: RequestReader, max_body_bytes: int) -> None:
        self._reader = reader
        self._max_body_bytes = max_body_bytes
        self._fast = FastReader(reader)
        self._gathering = GatheringReader(reader)
        self._most_gathered_bytes = min(max_body_bytes, self._gathering.most_bytes)
        self._telling: dict[tuple[str, ...], list[str]] = {}

    def gather(
        self, requests: Sequence[Mapping[str, Any]], headers: Sequence[Mapping[str, Any]]
    ) -> list[Gathered]:
        """Those of ``requests`` that hold one sample and nothing wrong or unusual, read together; places are theirs."""
        bodies = []
        for place, request in enumerate(requests):
            raw = request.get("body")
            if not isinstance(raw, (bytes, bytearray)) or len(raw) > self._most_gathered_bytes:
                continue
            if self._is_plain(headers[place]):
                bodies.append((place, raw))
        return self._gathering.read(bodies) if bodies else []

    def decode(self, request: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> DecodedRequest:
        """The request's samples. RequestError, or LimitError, with its mistakes."""
        headers = headers or {}
        decoded = self._decode(find_body(request, self._max_body_bytes, headers), headers)
        if MEDIA_TYPE not in _header(headers, "accept"):
            return decoded
        pyarrow()  # here, where its absence is this request's own error
        return replace(decoded, arrow=True)

    def _is_plain(self, headers: Mapping[str, Any]) -> bool:
        """Whether ``headers`` say no more than that JSON comes, and scores are wanted in JSON."""
        names = tuple(headers)
        telling = self._telling.get(names)
        if telling is None:
            telling = [name for name in names if name.lower() in _TELLING]
            if len(self._telling) < _MOST_NAMES_KEPT:  # a client sends the same names again and again
                self._telling[names] = telling
        for name in telling:
            value = str(headers[name])
            # TorchServe says explain and describe, True or False, of every request.
            if value == "True" or MEDIA_TYPE in value.lower() or name.lower() == JSON_LENGTH:
                return False
        return True

    def _decode(self, raw: Any, headers: Mapping[str, Any]) -> DecodedRequest:
        if not isinstance(raw, bytes):
            return decode_body(read_object(raw), self._reader)
        length = _header(headers, JSON_LENGTH)
        if length:
            return self._decode_binary(raw, length)
        if looks_like_arrow(raw) or _header(headers, "content-type").startswith(MEDIA_TYPE):
            return decode_arrow(raw, self._reader)
        return self._fast.read(raw) or decode_body(read_object(raw), self._reader)

    def _decode_binary(self, raw: bytes, length: str) -> DecodedRequest:
        sent, rest = split_body(raw, length)
        body = read_object(sent)
        cut_tensors(body, rest)
        return decode_body(body, self._reader)


def _header(headers: Mapping[str, Any], name: str) -> str:
    """HTTP leaves the case of a header's name to the client."""
    value = headers.get(name.title())
    if value is None:
        value = next((value for key, value in headers.items() if key.lower() == name), "")
    return str(value).lower()
