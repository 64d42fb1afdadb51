"""Server under load: its declaration, tokens, and the CPU and memory of its processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import psutil

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.archive.reading import read_archive_declaration
from dlrm_factory.tools.client.tokens import KeyFileAuth, is_loopback, is_refused
from dlrm_factory.tools.server import Endpoint, running_server
from dlrm_factory.tools.server.management import http_client

__all__ = [
    "ServerMeter",
    "ServerUse",
    "authorization",
    "served_declaration",
    "server_root",
]

_TIMEOUT_S = 30.0


def authorization(endpoint: Endpoint) -> str | None:
    """The Authorization header that the server takes, renewed if it has expired; None where none is needed.

    ServingError if the server does not answer, or refuses the token.
    """
    with http_client(endpoint.url.rstrip("/"), endpoint.auth, _TIMEOUT_S) as client:
        try:
            response = client.get("/ping")
        except httpx.TransportError as error:
            raise ServingError(
                f"no server answers at {endpoint.url} ({error or type(error).__name__})"
            ) from error
    if is_refused(response):
        raise ServingError(f"the server at {endpoint.url} refuses the token; give another with --token")
    return response.request.headers.get("Authorization")


def served_declaration(endpoint: Endpoint, model: str) -> DLRMDeclaration:
    """Declaration of a model that the run directory's server serves. ServingError where it cannot be found out."""
    if endpoint.local is None:
        raise ServingError(
            f"what {endpoint.url} serves is not known here; name the model's declaration or archive with "
            "--declaration, or give whole requests with --requests"
        )
    state = running_server(endpoint.local.root)
    assert state is not None
    auth = KeyFileAuth(endpoint.local.key_file, "management", state.management) if state.token_auth else None
    with http_client(state.management, auth, _TIMEOUT_S) as client:
        response = client.get(f"/models/{quote(model, safe='')}")
    if not response.is_success:
        raise ServingError(
            f'the server has no model "{model}"; it was started with {", ".join(state.models)}'
        )
    return read_archive_declaration(Path(state.model_store) / response.json()[0]["modelUrl"])


@dataclass(frozen=True, kw_only=True)
class ServerUse:
    """CPU and memory of one process, between two moments.

    Fields:
        name: ``frontend`` for the process that listens, ``worker`` for TorchServe's workers, else the program's.
        cores: CPU seconds a second.
        private_bytes, proportional_bytes: USS and PSS at the end; 0 where the system does not tell.
    """

    pid: int
    name: str
    cores: float
    private_bytes: int
    proportional_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "name": self.name,
            "cores": self.cores,
            "private_bytes": self.private_bytes,
            "proportional_bytes": self.proportional_bytes,
        }


def server_root(url: str) -> psutil.Process | None:
    """The process of this machine that listens at ``url``; None if it is elsewhere or hidden from us."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if not is_loopback(url):
        return None
    try:
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.pid and each.laddr.port == port:
                return psutil.Process(each.pid)
    except (psutil.Error, OSError):
        pass
    return None


class ServerMeter:
    """Measures the process that listens and all that it started, from `begin` to `end`."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._before: dict[int, float] = {}
        self._began = 0.0
        self.uses: list[ServerUse] = []

    def begin(self) -> None:
        self._began = time.monotonic()
        self._before = {process.pid: seconds for process, seconds in self._cpu_seconds()}

    def end(self) -> None:
        """Fills ``uses``, the frontend first. Processes that started meanwhile count from their start."""
        took = max(time.monotonic() - self._began, 1e-9)
        self.uses = [
            self._use(process, (seconds - self._before.get(process.pid, 0.0)) / took)
            for process, seconds in self._cpu_seconds()
        ]

    def _use(self, process: psutil.Process, cores: float) -> ServerUse:
        try:
            memory = process.memory_full_info()
            private, proportional = memory.uss, getattr(memory, "pss", 0)
        except psutil.Error:
            private = proportional = 0
        return ServerUse(
            pid=process.pid,
            name=self._name(process),
            cores=cores,
            private_bytes=private,
            proportional_bytes=proportional,
        )

    def _name(self, process: psutil.Process) -> str:
        if process.pid == self._root.pid:
            return "frontend"
        try:
            words = process.cmdline()
            return "worker" if any("model_service_worker" in word for word in words) else str(process.name())
        except psutil.Error:
            return "?"

    def _cpu_seconds(self) -> list[tuple[psutil.Process, float]]:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []
        found = []
        for process in processes:
            try:
                times = process.cpu_times()
                found.append((process, times.user + times.system))
            except psutil.Error:
                continue
        return found
