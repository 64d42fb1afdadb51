"""Ports on this machine: find free ones, and say who holds a taken one."""

from __future__ import annotations

import contextlib
import socket

import psutil

from dlrm_factory.errors import ServingError

__all__ = ["check_free", "free_ports", "holder_of"]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """``count`` different ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def check_free(host: str, port: int, purpose: str, option: str) -> None:
    """Raises ServingError when ``port`` cannot be listened on; ``option`` is what changes it."""
    with socket.socket() as trial:
        # As the server does: a port that only waits out its last connections is free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            trial.listen(1)
        except OSError as error:
            raise ServingError(_taken(host, port, purpose, option, error)) from error


def _taken(host: str, port: int, purpose: str, option: str, error: OSError) -> str:
    if error.errno == 13:
        return f"{purpose} port {port} needs root; give a port over 1023 with {option}"
    if error.errno == 99:
        return f"{purpose} address {host} is not an address of this machine; mend config.properties"
    return (
        f"{purpose} port {port} is taken{holder_of(port)}; stop that, or give another port with {option} "
        "(0 picks a free one)"
    )


def holder_of(port: int) -> str:
    """``' by java (pid 4711)'`` for whoever listens on ``port``, ``''`` when the system does not tell."""
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = [c.pid for c in listening if c.laddr and c.laddr.port == port and c.pid]
        return f" by {psutil.Process(pids[0]).name()} (pid {pids[0]})" if pids else ""
    except (psutil.Error, OSError):
        return ""
