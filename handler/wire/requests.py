"""The requests of a batch, as TorchServe's protocol module reads them, with little done twice.

A client sends the same headers again and again. A block of headers that has come before is known by its bytes, and
what TorchServe makes of it is made once::

    | id | name value | name value | ... | -1 | name content-type value | ... | -1 |   then the next request, or -1
           `-------- a block of headers -------'
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handler.request import REQUEST_ID
from handler.wire.read_ahead import ReadBuffers

__all__ = ["Headers", "RequestReads", "unpacker"]

_INT = struct.Struct("!i")
_END = _INT.pack(-1)
_MAX_BLOCKS = 512
_MAX_BLOCK_BYTES = 4096
# The same client's blocks differ in the digits of its content-length.
_MAX_LENGTHS = 4

Request = dict[str, Any]
Unpacked = tuple[list[Any], list[dict[str, Any]], dict[int, str]]


class Headers(list[dict[str, bytearray]]):
    """A block of headers as TorchServe reads it, and what it makes of them later. Shared by requests: not changed."""

    def __init__(self, pairs: Sequence[tuple[bytearray, bytearray]]) -> None:
        super().__init__({"name": name, "value": value} for name, value in pairs)
        self._pairs = pairs
        self._made: dict[tuple[str, str], dict[str, Any]] = {}

    def with_parameter(self, name: str, content_type: str) -> dict[str, Any]:
        """Name → value, beside what is said of a request's one parameter. Always the same dict: not to be changed."""
        made = self._made.get((name, content_type))
        if made is None:
            made = {name: {"content-type": content_type}}
            made.update((key.decode("utf-8"), value.decode("utf-8")) for key, value in self._pairs)
            if len(self._made) < _MAX_LENGTHS:
                self._made[name, content_type] = made
        return made


class RequestReads:
    """Reads batches of requests as ``read_parameter``'s module does. For one thread at a time."""

    def __init__(
        self, buffers: ReadBuffers, read_parameter: Callable[[socket.socket], Request | None]
    ) -> None:
        """``read_parameter``: TorchServe's own, over ``buffers``."""
        self._buffers = buffers
        self._read_parameter = read_parameter
        self._known: dict[bytes, Headers] = {}
        self._lengths: list[int] = []
        self._usual, self._usual_name, self._usual_type = b"", "", ""

    def read_batch(self, conn: socket.socket) -> list[Request]:
        """Give the same as TorchServe's `_retrieve_inference_msg`."""
        buffers = self._buffers
        # As TorchServe asks for each request; elsewhere it decodes values itself.
        raw = os.environ.get("TS_DECODE_INPUT_REQUEST") == "false"
        batch: list[Request] = []
        while (length := buffers.read_int(conn)) != -1:
            request_id = buffers.read(conn, length)
            headers = buffers.take_one_of(conn, self._known, self._lengths)
            if headers is None:
                headers = self._read_headers(conn)
            parameters = self._read_parameters(conn, raw)
            batch.append({"requestId": request_id, "headers": headers, "parameters": parameters})
        return batch

    def _read_headers(self, conn: socket.socket) -> Headers:
        read, read_int = self._buffers.read, self._buffers.read_int
        pairs = []
        while (length := read_int(conn)) != -1:
            name = read(conn, length)
            pairs.append((name, read(conn, read_int(conn))))
        headers = Headers(pairs)
        self._keep(b"".join([*(_field(part) for pair in pairs for part in pair), _END]), headers)
        return headers

    def _keep(self, block: bytes, headers: Headers) -> None:
        # One with an id of its request never comes again.
        if len(block) > _MAX_BLOCK_BYTES or REQUEST_ID.encode() in block.lower():
            return
        if len(self._known) >= _MAX_BLOCKS:
            self._known.clear()
        self._known[block] = headers
        lengths = [len(block), *(length for length in self._lengths if length != len(block))]
        self._lengths = lengths[:_MAX_LENGTHS]

    def _read_parameters(self, conn: socket.socket, raw: bool) -> list[Request]:
        buffers, parameters = self._buffers, []
        if raw and self._usual and buffers.take(conn, self._usual):
            value = buffers.read(conn, buffers.read_int(conn))
            parameters.append({"name": self._usual_name, "contentType": self._usual_type, "value": value})
            if buffers.take(conn, _END):
                return parameters
        while (parameter := self._read_parameter(conn)) is not None:
            parameters.append(parameter)
            self._usual_name, self._usual_type = parameter["name"], parameter["contentType"]
            usual = _field(self._usual_name.encode()) + _field(self._usual_type.encode())
            self._usual = usual if len(usual) <= _MAX_BLOCK_BYTES else b""
        return parameters


def unpacker(processor: Callable[[Mapping[str, Any]], Any]) -> Callable[[Sequence[Request] | None], Unpacked]:
    """Stand-in for TorchServe's `Service.retrieve_data_for_inference`: (headers, inputs, ids) of a batch.

    ``processor``: TorchServe's RequestProcessor.
    """

    def unpack(batch: Sequence[Request] | None) -> Unpacked:
        if batch is None:
            raise ValueError("Received invalid inputs")
        processors, inputs, ids = [], [], {}
        for index, request in enumerate(batch):
            ids[index] = request["requestId"].decode("utf-8")
            parameters, headers = request["parameters"], request["headers"]
            if len(parameters) == 1 and type(headers) is Headers:
                only = parameters[0]
                name = only["name"]
                inputs.append({name: only["value"]})
                processors.append(processor(headers.with_parameter(name, only["contentType"])))
            else:
                inputs.append({each["name"]: each["value"] for each in parameters})
                said = {each["name"]: {"content-type": each["contentType"]} for each in parameters}
                said |= {h["name"].decode("utf-8"): h["value"].decode("utf-8") for h in headers or ()}
                processors.append(processor(said))
        return processors, inputs, ids

    return unpack


def _field(value: bytes | bytearray) -> bytes:
    return _INT.pack(len(value)) + value
