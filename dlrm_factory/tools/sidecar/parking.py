"""Connections of workers whose version was removed, held open until the server ends.

A version is removed in this order, so that each request to it gets an answer::

    close its queue ── quiet ── unregister it ── end its workers' processes ── park their connections
    new requests: 503           new requests: 404

TorchServe forgets workers when it closes a queue, and so never ends them. One whose connection ends it would start
anew, from a folder that is gone, for five minutes. So a worker's guard sends the connection here, where nothing comes
on it any more; a sleeping thread of TorchServe is what stays.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import resource
import socket
import threading
from pathlib import Path

from dlrm_factory.host.worker_file import parking_path

__all__ = ["Parking"]

logger = logging.getLogger(__name__)

MAX_PARKED = 1000
_MAX_FILES = 2 * MAX_PARKED
# Of a group of ranks.
_MAX_AT_ONCE = 200
_RECEIVE_S = 0.5


class Parking:
    """Takes connections at a socket in the server's ``temporary`` folder, until it is closed.

    Of more than ``limit`` connections the oldest are ended.
    """

    def __init__(self, temporary: Path, limit: int = MAX_PARKED) -> None:
        _allow_files()
        self._path, self._limit = parking_path(temporary), limit
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        finally:
            os.umask(before)
        self._socket.settimeout(_RECEIVE_S)
        self._parked: collections.deque[socket.socket] = collections.deque()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="parking", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._parked)

    def close(self) -> None:
        """End all connections, and take no more."""
        self._stopped.set()
        self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)
        self._keep(0)

    def _receive(self) -> None:
        while not self._stopped.is_set():
            try:
                _, descriptors, _, _ = socket.recv_fds(self._socket, 1, _MAX_AT_ONCE)
            except TimeoutError:
                continue
            except OSError as error:
                logger.error("A connection could not be parked: %s", error)
                continue
            for descriptor in descriptors:
                self._add(descriptor)
            self._keep(self._limit)

    def _add(self, descriptor: int) -> None:
        try:
            connection = socket.socket(fileno=descriptor)
        except OSError as error:
            logger.error("A connection could not be parked: %s", error)
            with contextlib.suppress(OSError):
                os.close(descriptor)
            return
        # TorchServe connects to a name, which it leaves behind.
        with contextlib.suppress(OSError):
            Path(str(connection.getsockname())).unlink(missing_ok=True)
        self._parked.append(connection)

    def _keep(self, most: int) -> None:
        while len(self._parked) > most:
            self._parked.popleft().close()


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(_MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
