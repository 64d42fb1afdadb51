"""torch's stores, by which ranks find each other, and the network interface that they talk over."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import tempfile
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from dlrm_factory.errors import ServingError
from dlrm_factory.host.process import process_start

__all__ = ["connect_store", "host_store_path", "listen_store", "use_interface"]

_CONNECTING = timedelta(seconds=60)
_BACKLOG = 1024
_LOOPBACK = "lo"
_SIOCGIFADDR = 0x8915  # of Linux: an interface's address


def host_store_path(launcher: int) -> Path:
    """File by which ranks of one launcher, a pid, find each other on its host: no port is opened for that."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Path(tempfile.gettempdir()) / f".dlrm.ranks.{launcher}.{process_start(launcher)}.{attempt}"


def listen_store(address: str) -> dist.TCPStore:
    """A store for ranks of several hosts, at ``address`` alone and a free port.

    torch's own way to open one listens on all interfaces.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(_BACKLOG)
    port = int(listener.getsockname()[1])
    # The store closes the descriptor.
    return dist.TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_CONNECTING,
        master_listen_fd=listener.detach(),
    )


def connect_store(address: str, port: int) -> dist.TCPStore:
    """The store that the leader has opened."""
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_CONNECTING)


def use_interface(address: str | None) -> None:
    """Let gloo and NCCL use the interface that has ``address``; None for the loopback interface.

    Both take the first address of an interface. What the environment says already stays so.

    ServingError if no interface has the address.
    """
    interface = _LOOPBACK if address is None else _interface_of(address)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    # To NCCL a name without "=" means all interfaces whose names start so.
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")


def _interface_of(address: str) -> str:
    if address.startswith("127."):  # all of these are the loopback interface's
        return _LOOPBACK
    interfaces = _first_addresses()
    for name, addresses in interfaces.items():
        if address in addresses:
            return name
    known = ", ".join(
        f"{name} ({', '.join(addresses)})" for name, addresses in interfaces.items() if addresses
    )
    raise ServingError(
        f"no network interface of this machine has the address {address} as its first; it has {known}"
    )


def _first_addresses() -> dict[str, list[str]]:
    """Addresses of each network interface: the first of IPv4, which is the one that gloo takes, and those of IPv6."""
    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for name, addresses in found.items():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asked, _SIOCGIFADDR, request)
            except OSError:
                continue  # it has none
            addresses.append(socket.inet_ntoa(answer[20:24]))
    listed = Path("/proc/net/if_inet6")
    for line in listed.read_text().splitlines() if listed.exists() else []:
        digits, *_, name = line.split()
        found.setdefault(name, []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found
