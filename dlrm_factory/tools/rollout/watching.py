"""Live requests of versions, as their workers tell of them while a rollout asks."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from dlrm_factory.host.sample import TapReport, read_report, tap_path
from dlrm_factory.host.worker_file import WorkerFile, find_worker_file
from dlrm_factory.tools.rollout.judging import VersionFigures, read_scores

__all__ = ["Watch"]

_MAX_SCORES = 200_000
_MAX_TIMES = 200_000
_MAX_BODY_BYTES = 64 << 20
_RECEIVE_S = 0.2


class _Seen:
    """Counts and samples of one version, bounded."""

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.times: collections.deque[float] = collections.deque(maxlen=_MAX_TIMES)
        self.scores: collections.deque[float] = collections.deque(maxlen=_MAX_SCORES)

    def add(self, report: TapReport) -> None:
        self.requests += report.answered + report.refused + report.failed
        self.errors += report.failed
        for requests, seconds in report.seconds:
            self.times.extend([1000 * seconds] * requests)
        for each in report.sampled:
            self.scores.extend(read_scores(each.answer)[0])


class Watch:
    """Watches workers until the block ends. Bodies of requests are kept only where they are asked for, in memory."""

    def __init__(
        self, temporary: Path, workers: Mapping[str, Sequence[int]], *, bodies_of: str | None = None
    ) -> None:
        """Watch ``workers``: version → pids, of a server with this ``temporary`` folder.

        ``bodies_of``: version whose requests are kept for `take_body`.
        """
        self._path = tap_path(temporary)
        self._temporary, self._workers, self._bodies_of = temporary, workers, bodies_of
        self._version = {pid: version for version, pids in workers.items() for pid in pids}
        self._seen = {version: _Seen() for version in workers}
        self._bodies: collections.deque[bytes] = collections.deque()
        self._body_bytes = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __enter__(self) -> Watch:
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._path.chmod(0o600)
        self._socket.settimeout(_RECEIVE_S)
        self._files: list[WorkerFile] = []
        for version, pids in self._workers.items():
            for pid in pids:
                file = find_worker_file(pid, self._temporary)
                if file is not None:
                    file.tap = 2 if version == self._bodies_of else 1
                    self._files.append(file)
        self._thread = threading.Thread(target=self._receive, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.tap = 0
            file.close()
        self._stopped.set()
        self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def figures(self, version: str) -> VersionFigures:
        """Figures of what ``version`` has answered since the block began; times are those in the worker."""
        with self._lock:
            seen = self._seen[version]
            return VersionFigures(
                requests=seen.requests,
                errors=seen.errors,
                times=np.array(seen.times, dtype=np.float64),
                scores=np.array(seen.scores, dtype=np.float64),
            )

    def take_body(self) -> bytes | None:
        """One of the requests that wait, at random; None if there is none."""
        with self._lock:
            if not self._bodies:
                return None
            self._bodies.rotate(random.randrange(len(self._bodies)))
            body = self._bodies.popleft()
            self._body_bytes -= len(body)
            return body

    def _receive(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                _, descriptors, _, _ = socket.recv_fds(self._socket, 16, 4)
                for descriptor in descriptors:
                    report = read_report(descriptor)
                    os.close(descriptor)
                    if report is not None:
                        self._add(report)

    def _add(self, report: TapReport) -> None:
        version = self._version.get(report.pid)
        if version is None:
            return
        with self._lock:
            self._seen[version].add(report)
            for each in report.sampled:
                if version == self._bodies_of and each.body:
                    self._bodies.append(each.body)
                    self._body_bytes += len(each.body)
            while self._body_bytes > _MAX_BODY_BYTES:
                self._body_bytes -= len(self._bodies.popleft())
