"""Hosts for tests: network namespaces on one bridge, or loopback addresses where a machine lets nobody make any."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Host:
    """``address``: in the hosts' network; ``prefix``: of commands that run there; ``link``: its end on this machine."""

    address: str
    prefix: tuple[str, ...] = ()
    link: str | None = None

    def cut(self) -> None:
        _ip("link", "set", str(self.link), "down")

    def mend(self) -> None:
        _ip("link", "set", str(self.link), "up")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """``count`` hosts, this machine the first; the others are gone after the block."""
    # Names of interfaces have at most 15 characters.
    name = f"dt{os.getpid() % 1_000_000:x}"
    with contextlib.ExitStack() as stack:
        try:
            found = _namespaces(name, count, stack)
        except (OSError, subprocess.CalledProcessError):
            stack.close()
            found = [Host(address=f"127.0.0.{i + 1}") for i in range(count)]
        yield found


def _namespaces(name: str, count: int, stack: contextlib.ExitStack) -> list[Host]:
    network = f"10.{random.randrange(200, 250)}.{random.randrange(1, 250)}"
    _ip("link", "add", name, "type", "bridge")
    stack.callback(_ip, "link", "del", name)
    _ip("addr", "add", f"{network}.1/24", "dev", name)
    _ip("link", "set", name, "up")
    found = [Host(address=f"{network}.1")]
    for i in range(1, count):
        space, link = f"{name}n{i}", f"{name}l{i}"
        _ip("netns", "add", space)
        stack.callback(_ip, "netns", "del", space)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", name, "up")
        _ip("-n", space, "addr", "add", f"{network}.{i + 1}/24", "dev", "eth0")
        for interface in ("eth0", "lo"):
            _ip("-n", space, "link", "set", interface, "up")
        found.append(Host(address=f"{network}.{i + 1}", prefix=("ip", "netns", "exec", space), link=link))
    return found


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def listens_everywhere(pid: int) -> list[str]:
    """Addresses of all interfaces that a process listens on, whatever its network namespace."""
    folder = Path(f"/proc/{pid}")
    sockets = set()
    for each in (folder / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            sockets.add(str(each.readlink()))
    found = []
    for name in ("tcp", "tcp6"):
        for line in (folder / "net" / name).read_text().splitlines()[1:]:
            fields = line.split()
            address, listens = fields[1], fields[3] == "0A"
            if listens and f"socket:[{fields[9]}]" in sockets and not address.partition(":")[0].strip("0"):
                found.append(address)
    return found
