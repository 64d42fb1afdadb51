"""Work of the process beside a server, once a second, until the server has ended."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout import remove_kept
from dlrm_factory.tools.server import ManagementClient, RunDir, ServerState, management_client, running_server
from dlrm_factory.tools.sidecar.probes import Probes, ProbeServer

__all__ = ["run"]

logger = logging.getLogger(__name__)

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
        with management_client(run_dir, state) as client:
            while running_server(path) is not None and not stop.wait(_EVERY_S):
                _work(run_dir, state, client)
    finally:
        if server is not None:
            server.close()


def _work(run_dir: RunDir, state: ServerState, client: ManagementClient) -> None:
    if run_dir.draining_file.exists():
        return
    try:
        remove_kept(run_dir, state, client)
    except ServingError as error:
        logger.warning("%s", error)
