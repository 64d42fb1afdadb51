"""``GET /metrics`` of one exporter, by HTTP."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.monitoring.exporter import Exporter

__all__ = ["CONTENT_TYPE", "MetricsServer"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_IDLE_S = 10.0
_FOUND = "there is /metrics\n"


class MetricsServer(ThreadingHTTPServer):
    """Serves ``exporter`` at an address until it is closed."""

    daemon_threads = True

    def __init__(self, host: str, port: int, exporter: Exporter) -> None:
        """ServingError where the address cannot be used; port 0 takes a free one."""
        # Scrapes one after the other: each reads all files.
        self.scraping = threading.Lock()
        try:
            super().__init__((host, port), type("Handler", (_Handler,), {"exporter": exporter}))
        except (OSError, OverflowError) as error:
            raise ServingError(f"{host}:{port} cannot be used: {error}; give another --port") from None
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def __exit__(self, *arguments: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    exporter: Exporter
    server: MetricsServer
    timeout = _IDLE_S
    server_version = "dlrm"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/metrics":
            with self.server.scraping:
                status, body = 200, self.exporter.text().encode()
        else:
            status, body = 404, _FOUND.encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Write no line a scrape."""
