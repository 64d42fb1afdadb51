"""Answers of probes by HTTP: readiness, liveness, and metrics of the process beside a server."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dlrm_factory.tools.server import Health, RunDir, ServerState, check_health, management_client
from dlrm_factory.tools.server.processes import is_running

__all__ = ["ProbeServer", "Probes"]

logger = logging.getLogger(__name__)

# Probes within so short a time get one answer: many who ask must not keep the server busy.
_FRESH_S = 0.5
_ANSWER_S = 5.0
_MAX_CONNECTIONS = 32
_IDLE_S = 10.0


class Probes:
    """Answers to the probes of one server: status and body of each path."""

    def __init__(self, run_dir: RunDir, state: ServerState) -> None:
        self._run_dir, self._state = run_dir, state
        self._client = management_client(run_dir, state, timeout=_ANSWER_S)
        self._lock = threading.Lock()
        self._known: tuple[float, Health] | None = None
        # Text of Prometheus by the name of its source, in addition to the server's readiness.
        self.metrics: dict[str, Callable[[], str]] = {}
        self._failed: set[str] = set()

    def health(self) -> Health:
        """Readiness, at most half a second old."""
        with self._lock:
            now = time.monotonic()
            if self._known is None or now - self._known[0] > _FRESH_S or self._run_dir.draining_file.exists():
                self._known = (now, self._look())
            return self._known[1]

    def answer(self, path: str) -> tuple[int, str, str]:
        """Status, type and body for ``GET path``."""
        if path == "/ready":
            found = self.health()
            return (200 if found.ready else 503), "application/json", json.dumps(found.as_dict())
        if path == "/live":
            live = is_running(self._state)
            return (200 if live else 503), "application/json", json.dumps({"live": live})
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4", self._metrics_text()
        body = json.dumps({"code": 404, "message": "there are /ready, /live and /metrics"})
        return 404, "application/json", body

    def _metrics_text(self) -> str:
        """Metrics of all sources; of one that fails, that it does."""
        found = {name: self._text_of(name, source) for name, source in self.metrics.items()}
        lines = [
            "# HELP dlrm_server_ready 1 if every model has its least number of workers and the server does not drain.",
            "# TYPE dlrm_server_ready gauge",
            f"dlrm_server_ready {int(self.health().ready)}",
            "# HELP dlrm_metrics_up 0 if the metrics of a source could not be read, and are left out.",
            "# TYPE dlrm_metrics_up gauge",
        ]
        lines += [
            f'dlrm_metrics_up{{source="{name}"}} {int(text is not None)}' for name, text in found.items()
        ]
        return "".join(f"{line}\n" for line in lines) + "".join(text or "" for text in found.values())

    def _text_of(self, name: str, source: Callable[[], str]) -> str | None:
        try:
            text = source()
        except Exception:  # whatever it is, the other metrics must be seen
            if name not in self._failed:
                logger.exception("Metrics of %s cannot be read, and are left out until they can", name)
            self._failed.add(name)
            return None
        self._failed.discard(name)
        return text

    def _look(self) -> Health:
        if not is_running(self._state):
            return Health(live=False, ready=False, reason="the server has ended")
        return check_health(self._run_dir, self._state, self._client)


class ProbeServer(ThreadingHTTPServer):
    """Serves ``probes`` at an address until it is closed."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, probes: Probes) -> None:
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((host, port), type("Handler", (_Handler,), {"probes": probes}))
        self._thread = threading.Thread(target=self.serve_forever, name="probes", daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def close(self) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    probes: Probes
    timeout = _IDLE_S
    server_version = "dlrm"
    sys_version = ""

    def do_GET(self) -> None:
        status, kind, text = self.probes.answer(self.path.partition("?")[0])
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Write no line a probe."""
