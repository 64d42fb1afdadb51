"""Connection of the generator: requests out, responses in, on an event loop with precise timers."""

from __future__ import annotations

import asyncio
import select
import selectors
from typing import Protocol, cast

__all__ = [
    "Connection",
    "Owner",
    "precise_event_loop",
]

# epoll waits whole milliseconds, rounded up: a request due in 0.2 ms would be sent 0.8 ms late.
_COARSE_S = 0.002


class _PreciseSelector(selectors.EpollSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if timeout > _COARSE_S:
            return super().select(timeout - _COARSE_S)
        # select(2) takes microseconds, and an epoll instance is a file that becomes readable.
        select.select([self.fileno()], [], [], timeout)
        return super().select(0)


def precise_event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop on epoll."""
    return asyncio.SelectorEventLoop(_PreciseSelector())


_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Owner(Protocol):
    """Observer of a connection and its requests."""

    def ready(self, connection: Connection) -> None:
        """Take ``connection``, which can send: just opened, or just answered."""

    def answered(self, connection: Connection, status: int) -> None:
        """The whole answer is there. `ready` or `lost` follows."""

    def lost(self, connection: Connection, *, unanswered: bool) -> None:
        """Drop ``connection``, which is closed, with or without a request on its way."""


class Connection(asyncio.Protocol):
    """Sends whole requests, counts answers. Bodies are not kept.

    Fields:
        due: when the request on its way was to be sent, in the event loop's seconds.
        which: the request's place in the job.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self.busy = False
        self.due = 0.0
        self.which = 0

    def send(self, request: bytes, *, which: int, due: float) -> None:
        assert self._transport is not None
        self.busy, self.which, self.due = True, which, due
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once; `Owner.lost` follows."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.ready(self)

    def connection_lost(self, error: Exception | None) -> None:
        unanswered, self.busy, self._transport = self.busy, False, None
        self._owner.lost(self, unanswered=unanswered)

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        head_end = data.find(_HEAD_END)
        if head_end < 0 or not _is_whole(data, head_end):
            self._received = data
            return
        self._received = b""
        status = int(data[9:12])
        if status < 200:  # 100 Continue and its like announce the answer
            self.data_received(data[head_end + 4 :])
            return
        self.busy = False
        self._owner.answered(self, status)
        # TorchServe closes after an error; waiting for its word would send a request into a closing socket.
        if status >= 400 or b"\r\nconnection: close" in data[: head_end + 2].lower():
            self.abort()
        else:
            self._owner.ready(self)


def _is_whole(data: bytes, head_end: int) -> bool:
    head = data[: head_end + 2].lower()
    found = head.find(_LENGTH)
    if found >= 0:
        start = found + len(_LENGTH)
        return len(data) >= head_end + 4 + int(head[start : head.index(b"\r\n", start)])
    # Nothing follows the answer to the only request, so the last chunk is at the end.
    return _CHUNKED not in head or data.endswith(_LAST_CHUNK)
