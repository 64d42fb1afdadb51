"""Messages of TorchServe's frontend to a worker, and what stands in for the socket they come from."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["FakeSocket", "fresh_module", "inference", "load", "request"]


def fresh_module(name: str) -> ModuleType:
    """A module of TorchServe's, loaded anew: what this process has of TorchServe is left as it is."""
    before = set(sys.modules)
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    spec = importlib.util.spec_from_file_location(f"{name.rpartition('.')[2]}_for_a_test", found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for added in set(sys.modules) - before:
        if added.partition(".")[0] == "ts":
            del sys.modules[added]
    return module


class FakeSocket:
    """Gives ``data`` in pieces of ``sizes``, over and over, then what a closed connection gives."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes, self.calls = data, sizes, 0

    def recv(self, most: int) -> bytes:
        piece = min(most, self.sizes[self.calls % len(self.sizes)])
        self.calls += 1
        given, self.data = self.data[:piece], self.data[piece:]
        return given

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        given = self.recv(len(buffer))
        buffer[: len(given)] = given
        return len(given)


def number(value: int) -> bytes:
    return struct.pack("!i", value)


def field(value: bytes) -> bytes:
    return number(len(value)) + value


def request(
    body: bytes = b"",
    *,
    request_id: bytes = b"id",
    headers: dict[bytes, bytes] | None = None,
    content: bytes = b"",
    parameters: Sequence[tuple[bytes, bytes, bytes]] | None = None,
) -> bytes:
    """``parameters``: (name, content type, value) each, in place of one named body."""
    parts = [field(request_id)]
    parts += [field(name) + field(value) for name, value in (headers or {}).items()]
    parts.append(number(-1))
    for parameter in [(b"body", content, body)] if parameters is None else parameters:
        parts += map(field, parameter)
    return b"".join([*parts, number(-1)])


def inference(*requests: bytes) -> bytes:
    return b"I" + b"".join(requests) + number(-1)


def load(name: bytes) -> bytes:
    parts = [field(name), field(b"/models/x"), number(64), field(b"dlrm_handler.py"), number(-1), field(b"")]
    return b"L" + b"".join(parts) + b"\x01"
