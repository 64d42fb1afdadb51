from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import settings
from dlrm_factory.tools.server.settings import check_free, free_ports, holder_of


def test_free_ports_are_different_and_free():
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        check_free("127.0.0.1", port, "inference", "--port")


@pytest.mark.parametrize(
    ("text", "quiet"), [("32768\t60999\n", True), ("1024\t65535\n", False), (None, False)]
)
def test_free_ports_are_none_that_the_kernel_gives_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, quiet: bool
) -> None:
    file = tmp_path / "ip_local_port_range"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(settings, "_KERNELS_PORTS", file)
    found = free_ports(8)
    assert len(set(found)) == 8
    assert quiet == all(16384 <= port < 32768 for port in found)


def test_a_taken_port_names_the_port_its_holder_and_the_option():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with pytest.raises(ServingError, match=rf"metrics port {port} is taken.*--metrics-port") as raised:
            check_free("127.0.0.1", port, "metrics", "--metrics-port")
        assert holder_of(port) in str(raised.value)
        # Some systems do not tell who holds a port; if they do, it is us.
        assert holder_of(port) == "" or f"(pid {os.getpid()})" in holder_of(port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ServingError, match=r"192\.0\.2\.1 is not an address of this machine"):
        check_free("192.0.2.1", 8080, "inference", "--port")
