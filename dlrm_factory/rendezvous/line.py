"""Messages over one TCP connection: JSON objects, one a line."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any

__all__ = ["BEAT_S", "MAX_MESSAGE_BYTES", "STARTING_S", "Line"]

MAX_MESSAGE_BYTES = 64 * 1024
# A sign of life; `sharding.timeout_s` of a second is told from silence yet.
BEAT_S = 0.25
# Silence that counts as the end while ranks start: Python holds a thread for seconds then.
STARTING_S = 20.0


class Line:
    """One end of a connection. `send` may be called by several threads, `receive` by one."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._received = b""
        self._sending = threading.Lock()

    @property
    def own_address(self) -> str:
        """Address of this end."""
        return str(self._connection.getsockname()[0])

    @property
    def peer_address(self) -> str:
        """Address of the other end."""
        return str(self._connection.getpeername()[0])

    def send(self, **message: Any) -> None:
        """OSError if the connection has ended."""
        with self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, within_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            TimeoutError: none came ``within_s`` seconds; what has come of it is kept.
            ConnectionError: the connection has ended, or what came is no message.
        """
        deadline = time.monotonic() + within_s
        while b"\n" not in self._received:
            if len(self._received) > MAX_MESSAGE_BYTES:
                raise ConnectionError(f"it sent a message of more than {MAX_MESSAGE_BYTES} bytes")
            left = deadline - time.monotonic()
            try:
                self._connection.settimeout(max(left, 1e-3))
                found = self._connection.recv(16 * 1024) if left > 0 else None
            except TimeoutError:
                found = None
            if found is None:
                raise TimeoutError(f"nothing came for {within_s:g} s")
            if not found:
                raise ConnectionError("it closed the connection")
            self._received += found
        text, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise ConnectionError("it sent what is not JSON") from None
        if not isinstance(message, dict):
            raise ConnectionError("it sent what is no message")
        return message

    def close(self) -> None:
        """End the connection, and a `receive` of another thread with it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
