"""A sample of what a worker answers, sent to `dlrm rollout` while it asks for it. Nothing is sent, or kept, else.

The sample stays in memory: it goes by a Unix socket in the server's own folder, as the descriptor of a file that has
no name. Whoever is too slow to take it misses it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_factory.host.sample import Sampled, TapReport, tap_path, write_report
from dlrm_factory.host.worker_file import WorkerFile
from dlrm_factory.requests.answers import Answer

__all__ = ["Tap"]

logger = logging.getLogger(__name__)

_EVERY_S = 0.05
_MAX_SAMPLED = 4  # requests of a report
_MAX_BYTES = 4 << 20  # of a report; what would be more is left out
_MAX_BATCHES = 1024
_JSON = "application/json"


class Tap:
    """Counts and times of a worker's answers, and a sample of them, sent twenty times a second at most."""

    def __init__(
        self, file: WorkerFile | None, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``file``: where a rollout asks; None where nobody can. ``path``: of its socket."""
        self._file, self._clock = file, clock
        self._path = path or tap_path()
        self._due = 0.0
        self._answered = self._refused = self._failed = 0
        self._seconds: list[tuple[int, float]] = []

    def offer(
        self,
        sent: Sequence[Mapping[str, Any]],
        headers: Sequence[Mapping[str, Any]],
        answers: Sequence[Answer],
        started: float,
    ) -> None:
        """Take note of a batch that was begun at ``started``, of `time.perf_counter`, and tell of it now and then."""
        if self._file is None or not self._file.tap:
            return
        try:
            self._count(answers, time.perf_counter() - started)
            now = self._clock()
            if now >= self._due:
                self._due = now + _EVERY_S
                self._send(sent, headers, answers, with_bodies=self._file.tap > 1)
        except Exception:
            # It would fail the batch, whose answers are there.
            logger.exception("Answers cannot be shown to a rollout")
            self._file.tap = 0

    def _count(self, answers: Sequence[Answer], seconds: float) -> None:
        for answer in answers:
            self._answered += answer.status < 400
            self._refused += 400 <= answer.status < 500
            self._failed += answer.status >= 500
        if len(self._seconds) < _MAX_BATCHES:
            self._seconds.append((len(answers), seconds))

    def _send(
        self,
        sent: Sequence[Mapping[str, Any]],
        headers: Sequence[Mapping[str, Any]],
        answers: Sequence[Answer],
        *,
        with_bodies: bool,
    ) -> None:
        sampled: list[Sampled] = []
        left = _MAX_BYTES
        for each, header, answer in zip(sent, headers, answers, strict=True):
            body = each.get("body")
            if (
                len(sampled) == _MAX_SAMPLED
                or not _shown(header, answer)
                or not isinstance(body, bytes | bytearray)
            ):
                continue
            left -= len(body) + len(answer.body)
            if left >= 0:
                sampled.append(Sampled(answer=answer.body, body=bytes(body) if with_bodies else b""))
        report = TapReport(
            pid=os.getpid(),
            answered=self._answered,
            refused=self._refused,
            failed=self._failed,
            seconds=self._seconds,
            sampled=sampled,
        )
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sender:
            sender.setblocking(False)
            try:
                sender.connect(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                # Whoever asked has died without taking it back.
                assert self._file is not None
                self._file.tap = 0
                return
            descriptor = write_report(report)
            try:
                socket.send_fds(sender, [b"1"], [descriptor])
            except BlockingIOError:
                return  # all but the sample goes with the next report
            finally:
                os.close(descriptor)
        self._answered = self._refused = self._failed = 0
        self._seconds = []


def _shown(headers: Mapping[str, Any], answer: Answer) -> bool:
    """Return True for scores that were asked for in JSON at ``/predictions``: another version can be asked likewise."""
    kind = str(headers.get("content-type") or headers.get("Content-Type") or _JSON)
    return (
        answer.status == 200
        and answer.content_type == _JSON
        and headers.get("explain") == "False"
        and "url_path" in headers
        and kind.startswith(_JSON)
    )
