"""Connections of retired workers are held open, and no more of them than there is room for."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

import pytest

from dlrm_factory.host.worker_file import parking_path
from dlrm_factory.tools.sidecar.parking import Parking


def send(path: Path, *connections: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        socket.send_fds(sender, [b"+"], [each.fileno() for each in connections])
    for each in connections:
        each.close()


def is_open(frontend: socket.socket) -> bool:
    frontend.setblocking(False)
    try:
        return frontend.recv(1) != b""
    except BlockingIOError:
        return True


def wait_for(parking: Parking, count: int) -> None:
    end = time.monotonic() + 20
    while len(parking) != count:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_oldest_is_ended_when_there_are_too_many(tmp_path: Path) -> None:
    parking = Parking(tmp_path, limit=3)
    pairs = [socket.socketpair() for _ in range(4)]
    send(parking_path(tmp_path), pairs[0][0], pairs[1][0])
    wait_for(parking, 2)
    send(parking_path(tmp_path), pairs[2][0])
    wait_for(parking, 3)
    assert all(is_open(frontend) for _, frontend in pairs)
    send(parking_path(tmp_path), pairs[3][0])
    end = time.monotonic() + 20
    while is_open(pairs[0][1]):
        assert time.monotonic() < end
    assert all(is_open(frontend) for _, frontend in pairs[1:])
    parking.close()
    assert not any(is_open(frontend) for _, frontend in pairs)
    for _, frontend in pairs:
        frontend.close()
    with pytest.raises(FileNotFoundError):
        send(parking_path(tmp_path))


def test_the_name_that_torchserve_connected_to_is_removed(tmp_path: Path) -> None:
    name = tmp_path / ".ts.sock.9000"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as frontend:
        listener.bind(str(name))
        listener.listen()
        frontend.connect(str(name))
        worker, _ = listener.accept()
        parking = Parking(tmp_path)
        send(parking_path(tmp_path), worker)
        wait_for(parking, 1)
        assert not name.exists()
        assert is_open(frontend)
        parking.close()


def test_what_is_no_connection_is_closed_and_the_next_one_is_parked(tmp_path: Path) -> None:
    parking = Parking(tmp_path)
    assert stat.S_IMODE(parking_path(tmp_path).stat().st_mode) == 0o600
    read, write = os.pipe()
    worker, frontend = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, frontend:
        sender.connect(str(parking_path(tmp_path)))
        socket.send_fds(sender, [b"+"], [write, worker.fileno()])
        worker.close()
        wait_for(parking, 1)
        assert is_open(frontend)
        os.close(write)
        # Nobody holds the other end.
        assert os.read(read, 1) == b""
        os.close(read)
        parking.close()
