"""TorchServe's connection to this worker process: found, watched, and sent to another process."""

from __future__ import annotations

import os
import select
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["FrontEndWatch", "find_connection", "hand_over_path", "send_connection"]

_SOCKET = ".ts.sock."  # names of TorchServe's sockets for its workers
_WATCH_S = 0.5


class FrontEndWatch:
    """Notices that TorchServe is gone while the model is loaded. Afterwards the worker reads its connection itself."""

    def __init__(self, on_end: Callable[[], object]) -> None:
        """``on_end``: called in another thread when TorchServe has ended the connection, if there is one."""
        self._on_end = on_end
        self._stopped = threading.Event()
        connection = find_connection()
        if connection is not None:
            threading.Thread(target=self._watch, args=(connection,), daemon=True, name="front end").start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self, connection: int) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP)
        while not self._stopped.wait(_WATCH_S):
            if poll.poll(0):
                self._on_end()
                return


def hand_over_path(leader: int) -> Path:
    return Path(tempfile.gettempdir()) / f".dlrm.{leader}"


def send_connection(path: Path) -> None:
    connection = find_connection()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        if connection is None:
            sender.send(b"-")
        else:
            socket.send_fds(sender, [b"+"], [connection])


def find_connection() -> int | None:
    """File descriptor of TorchServe's connection to this process; None if there is none."""
    for each in Path("/proc/self/fd").iterdir():
        descriptor = int(each.name)
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _is_connection(descriptor):
                return descriptor
        except OSError:
            continue  # the listing's own
    return None


def _is_connection(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as found:
        if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            return False
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return not listens and Path(str(found.getsockname())).name.startswith(_SOCKET)
