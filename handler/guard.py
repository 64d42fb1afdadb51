"""Starts a worker's guard, a small process that answers the worker's batch once the worker is killed.

TorchServe answers a batch whose connection has ended with 500 or 507, "Worker died.", which clients do not send again.
The guard holds the connection too, so it does not end with the worker. It reads the ids of the batch in the worker's
file, answers them with 503, and ends. It does so too for a worker that was too slow when its version was removed, but
then the connection is parked.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from dlrm_factory.host.worker_file import Phase, WorkerFile, parking_path
from dlrm_factory.requests.answers import Answer
from handler.wire import Observers, error_tail, observers_of

__all__ = ["start_guard"]

logger = logging.getLogger(__name__)

_PROTOCOL = "ts.protocol.otf_message_handler"


def start_guard(
    file: WorkerFile | None, connections: Sequence[int | None], lost: Answer
) -> subprocess.Popen[bytes] | None:
    """Start the guard of this process; None where that cannot be, and a kill gives 500.

    Args:
        file: this worker's.
        connections: descriptors of TorchServe's connections that are to end with this process, its own first.
        lost: the answer to each request.
    """
    protocol = sys.modules.get(_PROTOCOL)
    observers = None if protocol is None else observers_of(protocol)
    held = [each for each in connections if each is not None]
    if observers is None or file is None or not connections or connections[0] is None:
        return None
    try:
        guard = _start(file, held, lost)
    except OSError as error:
        logger.warning("Requests that this worker has when it is killed will get 500, not 503: %s", error)
        return None
    note_phases(file, observers)
    file.parks = True
    return guard


def note_phases(file: WorkerFile, observers: Observers) -> None:
    """Keep in ``file`` how far the worker is with its batch."""

    def waits(_: socket.socket) -> None:
        # A large batch comes in several reads.
        if file.phase == Phase.SENDING:
            file.phase = Phase.IDLE

    def reads() -> None:
        file.phase = Phase.READING

    def writes() -> None:
        file.phase = Phase.SENDING

    observers.waits.append(waits)
    observers.reads.append(reads)
    observers.writes.append(writes)


def _start(file: WorkerFile, connections: Sequence[int], lost: Answer) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("guard_process.py")
    own = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        arguments = [os.getpid(), own, *file.PLACES, *connections]
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(parking_path()), *map(str, arguments)],
            stdin=subprocess.PIPE,
            # TorchServe takes the end of these for that of the worker.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[own, *connections],
            # torchrun and a terminal signal the worker's whole process group.
            start_new_session=True,
        )
    finally:
        os.close(own)
    assert guard.stdin is not None
    with guard.stdin as tail:
        tail.write(error_tail(lost.status, HTTPStatus(lost.status).phrase, lost.content_type, lost.body))
    return guard
