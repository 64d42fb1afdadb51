"""Work of the process beside a server, once a second, until the server has ended."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType

from dlrm_factory.tools.server import RunDir, running_server
from dlrm_factory.tools.sidecar.probes import Probes, ProbeServer

__all__ = ["run"]

_EVERY_S = 1.0


def run(path: Path, host: str, port: int | None) -> None:
    """Answer probes at ``host`` and ``port``, if given, until the server of the run directory ``path`` has ended."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    run_dir = RunDir.at(path)
    state = running_server(path)
    if state is None:
        return
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    probes = Probes(run_dir, state)
    server = None if port is None else ProbeServer(host, port, probes)
    try:
        while running_server(path) is not None and not stop.wait(_EVERY_S):
            pass
    finally:
        if server is not None:
            server.close()
