"""TorchServe's connection to a worker."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from handler.connection import FrontEndWatch, find_connection, send_connection


def test_the_connection_is_the_socket_that_torchserve_has_opened(tmp_path: Path) -> None:
    assert find_connection() is None
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as frontend:
        listener.bind(str(tmp_path / ".ts.sock.9001"))
        listener.listen(1)
        assert find_connection() is None
        frontend.connect(listener.getsockname())
        worker, _ = listener.accept()
        with worker:
            assert find_connection() == worker.fileno()
            leader = tmp_path / "leader"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
                receiver.bind(str(leader))
                send_connection(leader)
                (held,) = socket.recv_fds(receiver, 1, 1)[1]
        # The worker has ended, and the leader holds on.
        frontend.settimeout(0.05)
        with pytest.raises(TimeoutError):
            frontend.recv(1)
        os.close(held)
        assert frontend.recv(1) == b""


def test_the_end_of_torchserve_is_noticed_until_the_model_is_loaded(tmp_path: Path) -> None:
    ended = threading.Event()
    FrontEndWatch(ended.set)  # there is none
    for stops in (True, False):
        name = tmp_path / f".ts.sock.{stops}"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as frontend:
            listener.bind(str(name))
            listener.listen(1)
            frontend.connect(str(name))
            with listener.accept()[0]:
                watch = FrontEndWatch(ended.set)
                if stops:
                    watch.stop()
                frontend.close()
                assert ended.wait(1.0 if stops else 10.0) is not stops
