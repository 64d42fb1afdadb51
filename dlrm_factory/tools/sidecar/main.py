"""Work of the process beside a server, once a second, until the server has ended."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.monitoring.exporter import exporter_of
from dlrm_factory.tools.rollout import remove_kept
from dlrm_factory.tools.server import ManagementClient, RunDir, ServerState, management_client, running_server
from dlrm_factory.tools.sidecar.autoscaling import Autoscaler
from dlrm_factory.tools.sidecar.parking import Parking
from dlrm_factory.tools.sidecar.probes import Probes, ProbeServer

__all__ = ["run"]

logger = logging.getLogger(__name__)

_EVERY_S = 1.0


def run(path: Path) -> None:
    """Work for the server of the run directory ``path``, and answer its probes, until it has ended."""
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
    parking = Parking(Path(state.tmp))
    probes = Probes(run_dir, state)
    address = urlsplit(state.ready)
    server = (
        ProbeServer(address.hostname, address.port, probes) if address.hostname and address.port else None
    )
    try:
        with management_client(run_dir, state) as client:
            autoscaler = Autoscaler(run_dir, state, client)
            # Models first, TorchServe's own behind them; then what this process does.
            probes.metrics |= {"models": exporter_of(path).text, "autoscale": autoscaler.metrics}
            while running_server(path) is not None and not stop.wait(_EVERY_S):
                _work(run_dir, state, client, autoscaler)
    finally:
        parking.close()
        if server is not None:
            server.close()


def _work(run_dir: RunDir, state: ServerState, client: ManagementClient, autoscaler: Autoscaler) -> None:
    for each in (lambda: remove_kept(run_dir, state, client), autoscaler.work):
        if run_dir.draining_file.exists():
            return
        try:
            each()
        except ServingError as error:
            logger.warning("%s", error)
