"""Work of the process beside a server, once a second, until the server has ended."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.monitoring.exporter import exporter_of
from dlrm_factory.tools.rollout import remove_kept
from dlrm_factory.tools.server import RunDir, management_client, running_server
from dlrm_factory.tools.sidecar.autoscaling import Autoscaler
from dlrm_factory.tools.sidecar.parking import Parking
from dlrm_factory.tools.sidecar.probes import Probes, ProbeServer

__all__ = ["Turns", "run"]

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
            turns = Turns(
                {
                    "Removing versions": lambda: remove_kept(run_dir, state, client),
                    "Autoscaling": autoscaler.work,
                }
            )
            while running_server(path) is not None and not stop.wait(_EVERY_S):
                turns.take(run_dir)
    finally:
        parking.close()
        if server is not None:
            server.close()


class Turns:
    """The work of one second: each task in turn, whatever becomes of the others.

    This process holds connections open that end with it, so no task may end it.
    """

    def __init__(self, tasks: Mapping[str, Callable[[], object]]) -> None:
        """``tasks``: by their names in the log."""
        self._tasks = tasks
        self._failed: dict[str, type[Exception]] = {}

    def take(self, run_dir: RunDir) -> None:
        """Do each task, unless the server drains. What fails is done again the next time."""
        for name, task in self._tasks.items():
            if run_dir.draining_file.exists():
                return
            try:
                task()
            except ServingError as error:
                logger.warning("%s", error)
            except Exception as error:  # whatever it is, the connections must stay
                if self._failed.get(name) is not type(error):
                    logger.exception("%s fails, and is tried again", name)
                self._failed[name] = type(error)
                continue
            self._failed.pop(name, None)
