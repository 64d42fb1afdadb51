"""Live requests as workers tell of them, by version."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrm_factory.host.sample import tap_path
from dlrm_factory.host.worker_file import WorkerFile, WorkerFolder, worker_folder
from dlrm_factory.requests.answers import Answer, answer_json
from dlrm_factory.tools.rollout import watching
from dlrm_factory.tools.rollout.watching import Watch
from handler.tap import Tap

HTTP = {"explain": "False", "url_path": "", "content-type": "application/json"}


class Worker:
    """Worker that answers one request each second of its clock."""

    def __init__(self, folder: Path, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file: WorkerFile = WorkerFolder(worker_folder("/models/abc", folder), pid).own
        self._pid, self._now, self._patch = pid, 0.0, monkeypatch
        self._tap = Tap(self.file, tap_path(folder), clock=lambda: self._now)

    def answer(self, body: bytes, answer: Answer) -> None:
        self._now += 1.0
        self._patch.setattr("os.getpid", lambda: self._pid)
        self._tap.offer([{"body": body}], [HTTP], [answer], time.perf_counter())
        self._patch.undo()


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(tmp_path, 101, monkeypatch)


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(tmp_path, 102, monkeypatch)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_figures_are_by_version_and_bodies_of_one(old: Worker, new: Worker, tmp_path: Path) -> None:
    with Watch(tmp_path, {"1.0": [101], "2.0": [102]}, bodies_of="1.0") as watch:
        old.answer(b"first", answer_json({"predictions": [0.25, 0.75]}))
        old.answer(b"second", Answer(status=500, body=b"{}"))
        new.answer(b"third", answer_json({"score": 0.5}))
        until(lambda: watch.figures("1.0").requests == 2 and watch.figures("2.0").requests == 1)
        before, now = watch.figures("1.0"), watch.figures("2.0")
        assert (before.errors, before.scores.tolist(), len(before.times)) == (1, [0.25, 0.75], 2)
        assert (now.errors, now.scores.tolist()) == (0, [0.5])
        assert [watch.take_body(), watch.take_body()] == [b"first", None]
        assert tap_path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert (old.file.tap, new.file.tap) == (0, 0)
    assert not tap_path(tmp_path).exists()


def test_bodies_are_bounded(old: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "_MAX_BODY_BYTES", 250)
        with Watch(tmp_path, {"1.0": [101]}, bodies_of="1.0") as watch:
            for i in range(5):
                old.answer(b"%d" % i * 100, answer_json({"score": 0.5}))
                until(lambda i=i: watch.figures("1.0").requests == i + 1)
            taken = {watch.take_body() for _ in range(3)}
    assert taken == {b"3" * 100, b"4" * 100, None}
