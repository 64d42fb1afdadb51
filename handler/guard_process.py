"""Answers in place of a worker that was killed: ``python -I -S guard_process.py``, started by `handler.guard`.

Imports a few modules of Python's own alone: each worker has such a process, which should take little memory.

    guard_process.py <socket to park connections at> <pid of the worker> <its file>
                     <places in the file: ids' length, ids, phase, by HTTP, retired>
                     <connections, the worker's own first>

Files and connections are descriptors. Standard input has what follows a request's id in the answer to it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import sys
import time
from typing import Final

__all__ = ["HeldBatch", "Messages", "park", "retire", "stand_in"]

# Phases of `dlrm_factory.host.worker_file`.
IDLE: Final = 0
READING: Final = 1
HELD: Final = 2
ANSWERING: Final = 3
SENDING: Final = 4

_INT = struct.Struct("!i")
_END = _INT.pack(-1)
_TEXT = b"the worker that had this request is gone; send it again"
_NOBODY = b"none, for the worker is gone"
# In every prediction by HTTP, written by TorchServe, and in no call by gRPC.
_BY_HTTP = b"explain"
# TorchServe loses the requests that it gathers for a batch when the connection ends meanwhile. So that ends when no
# request has come for so long, or when TorchServe waits for an answer.
_NEXT_BATCH_S = 0.5
# A batch is there as a whole when no more of it has come for so long.
_QUIET_S = 0.02
# For TorchServe to take an answer, and to end the connection after one to a request that it does not know.
_TAKEN_S = 1.0
# Between the end of the worker's own connection, by which TorchServe gives it up, and that of the others.
_LAST_READ_S = 0.1
_CHUNK_BYTES = 1 << 18


class HeldBatch:
    """The worker's file, as far as its batch is concerned."""

    def __init__(
        self, file: mmap.mmap, length: int, ids: int, phase: int, by_http: int, retired: int
    ) -> None:
        """Places in ``file``."""
        self._file, self._length, self._ids, self._phase, self._by_http = file, length, ids, phase, by_http
        self._retired = retired

    @property
    def retired(self) -> bool:
        """True if TorchServe has forgotten the worker, which was then ended, with a batch if it was too slow."""
        return self._file[self._retired] != 0

    @property
    def phase(self) -> int:
        return self._file[self._phase]

    @property
    def ids(self) -> list[bytes]:
        """Ids of the batch's requests; none if not all take an answer of HTTP."""
        if not self._file[self._by_http]:
            return []
        length = int.from_bytes(self._file[self._length : self._length + 4], "little")
        return self._file[self._ids : self._ids + length].split(b"\n")


class Messages:
    """TorchServe's batches on a connection, and the last answers to them."""

    def __init__(self, connection: socket.socket, tail: bytes) -> None:
        """``tail``: what follows a request's id in the answer to it, by HTTP."""
        self._connection = connection
        self._tail = tail
        connection.settimeout(_TAKEN_S)
        self._stream = connection.makefile("rb", buffering=_CHUNK_BYTES)

    def has_ended(self, within_s: float = 0) -> bool:
        return _poll(self._connection, 0, within_s)

    def skip(self) -> None:
        """Read what has come and comes of a batch."""
        while _poll(self._connection, select.POLLIN, _QUIET_S) and self._connection.recv(_CHUNK_BYTES):
            pass

    def read_batch(self) -> list[bytes] | None:
        """Ids of the next batch's requests, none if not all take an answer of HTTP; None if no batch comes."""
        if not _poll(self._connection, select.POLLIN, _NEXT_BATCH_S):
            return None
        self._read(1)  # the command, which is a batch once the model is loaded
        ids, all_by_http = [], True
        while (length := self._read_int()) >= 0:
            ids.append(self._read(length))
            headers = set()
            while (length := self._read_int()) >= 0:
                headers.add(self._read(length))
                self._read(self._read_int())
            while (length := self._read_int()) >= 0:
                self._skip(length)
                self._skip(self._read_int())
                self._skip(self._read_int())
            all_by_http &= _BY_HTTP in headers
        return ids if all_by_http else []

    def fail(self, ids: list[bytes]) -> None:
        """Answer requests by HTTP with errors, and then let TorchServe give the worker up, before the next batch.

        It does so after an answer to a request that nobody has made; and answers the same requests itself, on
        connections that the errors have closed.
        """
        self.answer([*ids, _NOBODY])
        self.has_ended(_TAKEN_S)

    def answer(self, ids: list[bytes]) -> None:
        """Answer requests by HTTP with errors. TorchServe sends the next batch then."""
        answers = [_field(each) + self._tail for each in ids]
        self._connection.sendall(b"".join([_INT.pack(200), _field(_TEXT), *answers, _END]))

    def fail_all(self) -> None:
        """Let TorchServe answer all requests of the batch with errors of its own. It sends the next batch then."""
        self._connection.sendall(_INT.pack(503) + _field(_TEXT) + _END)

    def end(self) -> None:
        """End the connection, whoever else holds it."""
        self.close()
        self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._stream.close()

    def _read_int(self) -> int:
        number: int = _INT.unpack(self._read(_INT.size))[0]
        return number

    def _read(self, length: int) -> bytes:
        """Raises ConnectionError if the connection ends before."""
        found = self._stream.read(length)
        if len(found) < length:
            raise ConnectionError
        return found

    def _skip(self, length: int) -> None:
        while length > 0:
            length -= len(self._read(min(length, _CHUNK_BYTES)))


def stand_in(messages: Messages, batch: HeldBatch) -> None:
    """Answer the batch of the worker that has ended, and end its connection.

    Nothing is sent where TorchServe may not wait for an answer, or may have a part of it: it would take what is sent
    for the rest, or for the answer to a later batch.
    """
    if messages.has_ended():
        messages.close()
        return
    ids = _first_batch(messages, batch)
    while ids == []:
        messages.fail_all()
        ids = messages.read_batch()
    if ids:
        messages.fail(ids)
    messages.end()


def _answer_last(messages: Messages, batch: HeldBatch) -> None:
    """Answer the batch of a retired worker that was too slow, and what comes after it. The connection stays."""
    ids = _first_batch(messages, batch)
    while ids is not None:
        if ids:
            messages.answer(ids)
        else:
            messages.fail_all()
        ids = messages.read_batch()


def _first_batch(messages: Messages, batch: HeldBatch) -> list[bytes] | None:
    """Ids of the batch that waits for an answer, none if not all take one of HTTP; None if no batch waits or comes."""
    phase = batch.phase
    if phase == READING:
        messages.skip()
        return []
    return batch.ids if phase in (HELD, ANSWERING) else messages.read_batch()


def park(path: str, connections: list[socket.socket]) -> bool:
    """Hand the connections of a retired worker to the socket ``path``, and return False if nobody takes them there.

    TorchServe starts a worker anew whose connection ends, again and again for minutes, unless it ended the worker.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_TAKEN_S)
            sender.connect(path)
            socket.send_fds(sender, [b"+"], [each.fileno() for each in connections])
    except OSError:
        return False
    return True


def _poll(connection: socket.socket, events: int, within_s: float) -> bool:
    """True if one of ``events`` happens, or the other side has ended the connection."""
    poll = select.poll()
    poll.register(connection, events)
    return bool(poll.poll(1e3 * within_s))


def _field(value: bytes) -> bytes:
    return _INT.pack(len(value)) + value


def _wait_for_end(worker: int, connection: socket.socket) -> None:
    """Return when the process has ended, or TorchServe has ended the connection."""
    watched = os.pidfd_open(worker)
    if os.getppid() != worker:
        return
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    poll.register(connection, 0)
    poll.poll()


def retire(messages: Messages, batch: HeldBatch, path: str, connections: list[socket.socket]) -> None:
    """Answer what a retired worker left, and park its connections; the first is that of ``messages``."""
    with contextlib.suppress(OSError, struct.error):
        _answer_last(messages, batch)
    if park(path, connections):
        messages.close()
    else:
        messages.end()


def _main() -> None:
    worker, file, *others = map(int, sys.argv[2:])
    places, connections = others[:5], [socket.socket(fileno=each) for each in others[5:]]
    tail = sys.stdin.buffer.read()
    batch = HeldBatch(mmap.mmap(file, 0, prot=mmap.PROT_READ), *places)
    try:
        _wait_for_end(worker, connections[0])
        messages = Messages(connections[0], tail)
        if batch.retired:
            retire(messages, batch, sys.argv[1], connections)
        else:
            stand_in(messages, batch)
        time.sleep(_LAST_READ_S if len(connections) > 1 else 0)
    except (OSError, struct.error):
        return  # TorchServe has gone, or has given the worker up


if __name__ == "__main__":
    _main()
