"""Clients of a real server on keep-alive connections, who note every answer, and every request without one."""

from __future__ import annotations

import collections
import http.client
import json
import threading
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

from dlrm_factory.tools.server import RunningServer

__all__ = ["Clients"]


class Clients:
    """One thread a client until the block ends, or nobody listens any more.

    Fields:
        answers: (client, status, body) → how many.
        lost: what became of requests that got no answer.
    """

    def __init__(
        self,
        server: RunningServer,
        model: str,
        bodies: Sequence[bytes],
        *,
        versions: Sequence[str | None] = (None,),
        pause_s: float = 0.01,
        timeout_s: float = 15.0,
    ) -> None:
        """Client i sends body i, to version i % len(versions); None is the default version."""
        self._timeout_s = timeout_s
        self._address = urlsplit(server.state.inference).netloc
        token = json.loads(server.run_dir.key_file.read_text())["inference"]["key"]
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._bodies, self._pause_s = bodies, pause_s
        self._paths = [
            "/".join(["/predictions", model, *([quote(version, safe="")] if version else [])])
            for i in range(len(bodies))
            for version in [versions[i % len(versions)]]
        ]
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.answers: collections.Counter[tuple[int, int, bytes]] = collections.Counter()
        self.lost: list[BaseException] = []

    @property
    def scored(self) -> int:
        return sum(times for (_, status, _), times in self.answers.items() if status == 200)

    def __enter__(self) -> Clients:
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(len(self._bodies))]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.wait()

    def wait(self) -> None:
        """Return when all clients have stopped: by themselves only where nobody listens."""
        for thread in self._threads:
            thread.join()

    def _run(self, client: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=self._timeout_s)
        while not self._stopped.is_set():
            try:
                # TorchServe closes a connection after an error.
                if connection.sock is None:
                    connection.connect()
            except ConnectionError:
                return
            try:
                connection.request("POST", self._paths[client], self._bodies[client], self._headers)
                response = connection.getresponse()
                found = (client, response.status, response.read())
                with self._lock:
                    self.answers[found] += 1
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.lost.append(error)
                connection.close()
            self._stopped.wait(self._pause_s)
        connection.close()
