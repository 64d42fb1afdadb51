"""Bytes from a socket, many fields of a message at once."""

from __future__ import annotations

import logging
import socket
import struct
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["CHUNK_BYTES", "Observers", "ReadBuffers"]

CHUNK_BYTES = 256 * 1024

_INT = struct.Struct("!i")
T = TypeVar("T")


@dataclass(frozen=True)
class Observers:
    """Functions that are told where a worker is in its conversation with TorchServe.

    Fields:
        waits: with the connection, before each wait for more bytes; when all before are read, they are answered too.
        reads: after some bytes have come.
        writes: when the answers to a batch are about to leave.
    """

    waits: list[Callable[[socket.socket], None]] = field(default_factory=list)
    reads: list[Callable[[], None]] = field(default_factory=list)
    writes: list[Callable[[], None]] = field(default_factory=list)


class ReadBuffers:
    """Bytes read ahead of each connection, and the reads that take from there first.

    No read waits for more than it was asked for. Not for several threads on one connection.

    ``observers``: of waits and reads, told here.
    """

    def __init__(self) -> None:
        self.observers = Observers()
        self._chunk = bytearray(CHUNK_BYTES)  # what is ahead of `_conn` lies in [_at, _end)
        self._conn: socket.socket | None = None
        self._at = self._end = 0
        self._others: weakref.WeakKeyDictionary[socket.socket, bytearray] = weakref.WeakKeyDictionary()

    def read(self, conn: socket.socket, length: int) -> bytearray:
        """The next ``length`` bytes; none if it is negative. Exits as TorchServe does if the frontend has gone."""
        at, end = self._at, self._at + length
        if at <= end <= self._end and conn is self._conn:
            self._at = end
            return self._chunk[at:end]
        return self._receive(conn, length)

    def read_int(self, conn: socket.socket) -> int:
        """The next four bytes as a signed number, highest byte first."""
        at = self._at
        if at + 4 <= self._end and conn is self._conn:
            self._at = at + 4
            number: int = _INT.unpack_from(self._chunk, at)[0]
            return number
        return int(_INT.unpack(self._receive(conn, 4))[0])

    def take(self, conn: socket.socket, expected: bytes) -> bool:
        """Take ``expected`` if it comes next and is here already; True if so, else nothing is taken."""
        at, end = self._at, self._at + len(expected)
        if end <= self._end and conn is self._conn and self._chunk.startswith(expected, at):
            self._at = end
            return True
        return False

    def take_one_of(self, conn: socket.socket, known: Mapping[bytes, T], lengths: Iterable[int]) -> T | None:
        """Value in ``known`` for the bytes that come next, which are then taken; None if they are not there.

        ``lengths``: of the keys to look for, in this order.
        """
        if conn is self._conn:
            at, most = self._at, self._end - self._at
            for length in lengths:
                if length <= most:
                    found = known.get(bytes(self._chunk[at : at + length]))
                    if found is not None:
                        self._at = at + length
                        return found
        return None

    def _receive(self, conn: socket.socket, length: int) -> bytearray:
        if conn is not self._conn:
            self._turn_to(conn)
        ahead = self._chunk[self._at : min(self._end, self._at + max(length, 0))]
        self._at += len(ahead)
        data = bytearray(max(length, 0))
        data[: len(ahead)] = ahead
        filled = len(ahead)
        while filled < length:
            filled += self._receive_into(conn, memoryview(data)[filled:])
        return data

    def _receive_into(self, conn: socket.socket, missing: memoryview) -> int:
        """Bytes written to ``missing`` by one `recv`; what came with them stays ahead. Nothing is ahead before."""
        for tell in self.observers.waits:
            tell(conn)
        large = len(missing) >= CHUNK_BYTES
        count = _some(conn.recv_into(missing if large else self._chunk))
        for note in self.observers.reads:
            note()
        if large:
            return count
        taken = min(count, len(missing))
        missing[:taken] = self._chunk[:taken]
        self._at, self._end = taken, count
        return taken

    def _turn_to(self, conn: socket.socket) -> None:
        if self._conn is not None:
            self._others[self._conn] = self._chunk[self._at : self._end]
        ahead = self._others.pop(conn, bytearray())
        self._chunk[: len(ahead)] = ahead
        self._conn, self._at, self._end = conn, 0, len(ahead)


def _some(count: int) -> int:
    if count == 0:
        # The root logger and the exit status of TorchServe's own read.
        logging.info("Frontend disconnected.")
        sys.exit(0)
    return count
