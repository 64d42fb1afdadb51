"""A worker shows a sample of its answers only while a rollout asks, and never fails because of it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlrm_factory.host.sample import TapReport, read_report, tap_path
from dlrm_factory.host.worker_file import WorkerFile, WorkerFolder, worker_folder
from dlrm_factory.requests.answers import Answer, answer_json
from handler import tap as module
from handler.tap import Tap

HTTP = {"explain": "False", "url_path": "", "content-type": "application/json"}
BODY = b'{"instances": [{}]}'
ANSWER = answer_json({"predictions": [0.5]})


class Listener:
    """Socket of a rollout."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def reports(self) -> list[TapReport]:
        found = []
        while True:
            try:
                _, descriptors, _, _ = socket.recv_fds(self.socket, 16, 1)
            except BlockingIOError:
                return found
            for descriptor in descriptors:
                report = read_report(descriptor)
                os.close(descriptor)
                assert report is not None
                found.append(report)


@pytest.fixture
def file(tmp_path: Path) -> WorkerFile:
    return WorkerFolder(worker_folder("/models/abc", tmp_path), 1).own


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tap_path(tmp_path))
    yield made
    made.socket.close()


class Worker:
    """Worker whose clock stands at ``now``."""

    def __init__(self, file: WorkerFile | None, path: Path) -> None:
        self.now = 0.0
        self.tap = Tap(file, path, clock=lambda: self.now)

    def offer(self, *rows: tuple[bytes, dict[str, str], Answer]) -> None:
        sent: list[dict[str, Any]] = [{"body": bytearray(body)} for body, _, _ in rows]
        headers, answers = [header for _, header, _ in rows], [answer for _, _, answer in rows]
        self.tap.offer(sent, headers, answers, time.perf_counter())


@pytest.fixture
def worker(file: WorkerFile, tmp_path: Path) -> Worker:
    return Worker(file, tap_path(tmp_path))


def test_nothing_is_shown_unless_asked_for(worker: Worker, listener: Listener, tmp_path: Path) -> None:
    worker.offer((BODY, HTTP, ANSWER))
    Worker(None, tap_path(tmp_path)).offer((BODY, HTTP, ANSWER))
    assert listener.reports() == []


@pytest.mark.parametrize(("wish", "body"), [(1, b""), (2, BODY)])
def test_answers_are_shown_and_bodies_where_they_are_asked_for(
    worker: Worker, file: WorkerFile, listener: Listener, wish: int, body: bytes
) -> None:
    file.tap = wish
    worker.offer((BODY, HTTP, ANSWER))
    (report,) = listener.reports()
    assert (report.answered, report.refused, report.failed) == (1, 0, 0)
    assert [(each.answer, each.body) for each in report.sampled] == [(ANSWER.body, body)]
    ((requests, seconds),) = report.seconds
    assert requests == 1
    assert 0 <= seconds < 10


def test_counts_are_of_all_answers_and_samples_of_few(
    worker: Worker, file: WorkerFile, listener: Listener
) -> None:
    file.tap = 2
    refused, failed = Answer(status=400, body=b"{}"), Answer(status=500, body=b"{}")
    worker.offer(*[(BODY, HTTP, ANSWER)] * 10, (BODY, HTTP, refused))
    worker.offer(*[(BODY, HTTP, ANSWER)] * 10, (BODY, HTTP, failed))  # at the same time: told with the next
    worker.now = 1.0
    worker.offer((BODY, HTTP, ANSWER))
    first, second = listener.reports()
    assert (first.answered, first.refused, first.failed, len(first.sampled)) == (10, 1, 0, 4)
    assert (second.answered, second.refused, second.failed, len(second.sampled)) == (11, 0, 1, 1)
    assert [requests for requests, _ in second.seconds] == [11, 1]


@pytest.mark.parametrize(
    "headers",
    [
        {"explain": "True", "url_path": "", "content-type": "application/json"},
        {"explain": "False", "content-type": "application/json"},  # KServe's address
        {"explain": "False", "url_path": "", "content-type": "application/vnd.apache.arrow.stream"},
        {"body": "gRPC"},
    ],
)
def test_what_cannot_be_asked_of_another_version_alike_is_left_out(
    worker: Worker, file: WorkerFile, listener: Listener, headers: dict[str, str]
) -> None:
    file.tap = 2
    worker.offer((BODY, headers, ANSWER))
    (report,) = listener.reports()
    assert (report.answered, report.sampled) == (1, [])


def test_large_bodies_are_left_out(
    worker: Worker, file: WorkerFile, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    file.tap = 2
    worker.offer((b"x" * 2000, HTTP, ANSWER))
    (report,) = listener.reports()
    assert (report.answered, report.sampled) == (1, [])


def test_a_rollout_that_has_died_is_no_longer_told(worker: Worker, file: WorkerFile, tmp_path: Path) -> None:
    file.tap = 2
    worker.offer((BODY, HTTP, ANSWER))
    assert file.tap == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
        gone.bind(str(tap_path(tmp_path)))
    file.tap = 2
    worker.now = 1.0
    worker.offer((BODY, HTTP, ANSWER))
    assert file.tap == 0


def test_a_rollout_that_is_too_slow_misses_samples_and_no_counts(
    worker: Worker, file: WorkerFile, listener: Listener
) -> None:
    file.tap = 1
    for i in range(2000):
        worker.now = float(i)
        worker.offer((BODY, HTTP, ANSWER))
    first = listener.reports()
    worker.now = 3000.0
    worker.offer((BODY, HTTP, ANSWER))
    assert len(first) < 2000
    assert sum(each.answered for each in [*first, *listener.reports()]) == 2001


def test_a_fault_of_the_tap_fails_no_batch(
    worker: Worker,
    file: WorkerFile,
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(report: TapReport) -> int:
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(module, "write_report", fail)
    file.tap = 1
    with caplog.at_level(logging.ERROR):
        worker.offer((BODY, HTTP, ANSWER))
    assert file.tap == 0
    assert "cannot be shown" in caplog.text
