"""Answers of probes by HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from dlrm_factory.tools.sidecar import probes
from dlrm_factory.tools.sidecar.probes import ProbeServer


class Answers:
    """Probes with one answer."""

    asked = 0

    def answer(self, path: str) -> tuple[int, str, str]:
        self.asked += 1
        return (
            (503, "application/json", '{"ready": false, "reason": "ü"}')
            if path == "/ready"
            else (404, "a/b", "")
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProbeServer]:
    monkeypatch.setattr(probes, "_MAX_CONNECTIONS", 2)
    made = ProbeServer("127.0.0.1", 0, Answers())
    yield made
    made.close()


def test_a_probe_gets_its_status_and_reason(server: ProbeServer) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    found = httpx.get(f"{url}/ready?verbose=1", trust_env=False)
    assert (found.status_code, found.json()) == (503, {"ready": False, "reason": "ü"})
    assert httpx.get(f"{url}/other", trust_env=False).status_code == 404
    assert httpx.post(f"{url}/ready", content=b"x", trust_env=False).status_code == 501


def test_idle_connections_do_not_take_more_than_their_share(server: ProbeServer) -> None:
    address = ("127.0.0.1", server.server_port)
    idle = [socket.create_connection(address, timeout=10) for _ in range(3)]
    try:
        # Two are waited for; one of the three is closed at once.
        idle[2].settimeout(10)
        assert idle[2].recv(1) == b""
    finally:
        for each in idle:
            each.close()
