"""A leader of two hosts in this process, and hosts that knock."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.rendezvous import IDENTITY, SECRET

from dlrm_factory.rendezvous import Line, MeetingPlace, Rendezvous
from dlrm_factory.tools.server.settings import free_ports


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeetingPlace:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (port,) = free_ports(1)
    return MeetingPlace(address="127.0.0.1", ports=range(port, port + 1), secret=SECRET)


@pytest.fixture
def lead(place: MeetingPlace) -> Iterator[Callable[..., Rendezvous]]:
    with contextlib.ExitStack() as stack:

        def make(hosts: int = 2, world_size: int = 4) -> Rendezvous:
            made = Rendezvous(place, IDENTITY, world_size=world_size, hosts=hosts)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def connect(place: MeetingPlace) -> Iterator[Callable[..., Line]]:
    """A connection to the leader from one of the loopback addresses."""
    with contextlib.ExitStack() as stack:

        def make(source: str = "127.0.0.2") -> Line:
            line = Line(
                socket.create_connection(
                    (place.address, place.ports[0]), timeout=5, source_address=(source, 0)
                )
            )
            stack.callback(line.close)
            return line

        yield make
