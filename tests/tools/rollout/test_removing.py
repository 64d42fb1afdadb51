"""A version is taken away: closed, quiet, unregistered, and only then ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.management import InMemoryManagement, version_of

from dlrm_factory.host.worker_file import WorkerFile, WorkerFolder, worker_folder
from dlrm_factory.tools.rollout import removing
from dlrm_factory.tools.rollout.removing import remove_version
from dlrm_factory.tools.sidecar.parking import Parking


class Client(InMemoryManagement):
    """Server whose workers have started as soon as they are asked for; it notes what it saw of the first one."""

    def __init__(self, file: WorkerFile, *versions: Any) -> None:
        super().__init__(*versions)
        self._file = file
        self.turned_away: list[bool] = []
        self.lived: list[bool] = []

    def scale(self, model: str, workers: int, version: str | None = None) -> None:
        super().scale(model, workers, version)
        assert version is not None
        there = self.found[version]
        first = there.workers[0].pid
        started = version_of(version, pids=(first, *range(300, 300 + workers - 1)), ready=False)
        self.found[version] = replace(there, workers=started.workers)

    def unregister(self, model: str, version: str) -> None:
        self.turned_away.append(self._file.turns_away)
        self.lived.append(
            all(lives(worker.pid) and not self._file.retired for worker in self.found[version].workers)
        )
        super().unregister(model, version)


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removing, "_SETTLE_S", 0.05)
    monkeypatch.setattr(removing, "_ANSWER_S", 0.3)
    monkeypatch.setattr(removing, "_QUIET_S", 0.3)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A worker of the version, another process of it, its guard, and a stranger."""
    (tmp_path / "model").mkdir()
    (tmp_path / "else").mkdir()
    code = "import sys, time; time.sleep(60)"
    started = [
        subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path / folder)
        for folder, *words in (("model",), ("model",), ("model", "/x/guard_process.py"), ("else",))
    ]
    yield started
    for each in started:
        each.kill()
        each.wait()


def own_file(tmp_path: Path, pid: int) -> WorkerFile:
    file = WorkerFolder(worker_folder("/models/abc", tmp_path), pid).own
    file.parks = True
    return file


@pytest.fixture
def parking(tmp_path: Path) -> Iterator[None]:
    there = Parking(tmp_path)
    yield
    there.close()


@pytest.mark.usefixtures("parking")
def test_a_version_is_closed_then_unregistered_and_its_processes_end_last(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    worker = processes[0].pid
    file = own_file(tmp_path, worker)
    client = Client(file, version_of("2.0", pids=(101,)), version_of("1.0", pids=(worker,)))
    folder = tmp_path / "rollout-1234"
    folder.mkdir()
    remove_version(client, "dlrm", "1.0", temporary=tmp_path, folder=folder)
    assert client.calls == [("close", "1.0", 1), ("unregister", "1.0")]
    # What had come was scored.
    assert (client.turned_away, client.lived) == ([False], [True])
    assert file.retired
    assert [lives(each.pid) for each in processes] == [False, False, True, True]
    assert not folder.exists()


@pytest.mark.usefixtures("parking")
def test_what_waits_for_long_is_turned_away_before_the_version_goes(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    worker = processes[0].pid
    file = own_file(tmp_path, worker)
    file.busy = True
    client = Client(file, version_of("2.0", pids=(101,)), version_of("1.0", pids=(worker,)))
    remove_version(client, "dlrm", "1.0", temporary=tmp_path, folder=None)
    assert (client.turned_away, client.lived) == ([True], [True])
    assert not lives(worker)


@pytest.mark.parametrize("lacks", ["guard", "parking"])
def test_workers_whose_connections_nobody_parks_are_ended_by_torchserve(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]], lacks: str
) -> None:
    worker = processes[0].pid
    file = own_file(tmp_path, worker)
    file.parks = lacks != "guard"
    there = Parking(tmp_path) if lacks == "guard" else None
    client = Client(file, version_of("2.0", pids=(101,)), version_of("1.0", pids=(worker,)))
    remove_version(client, "dlrm", "1.0", temporary=tmp_path, folder=None)
    # TorchServe ends the last of its list first: those that never load.
    assert client.calls == [("scale", "1.0", 3), ("unregister", "1.0")]
    assert client.turned_away == [True]
    assert lives(worker)
    assert not file.retired
    if there is not None:
        there.close()


def test_a_version_without_a_ready_worker_or_gone_is_removed_too(tmp_path: Path) -> None:
    client = Client(own_file(tmp_path, 201), version_of("2.0"), version_of("1.0", pids=(201,), ready=False))
    keep = tmp_path / "archive"
    keep.mkdir()
    for _ in range(2):
        # Only folders that a rollout has made are removed.
        remove_version(client, "dlrm", "1.0", temporary=tmp_path, folder=keep)
    assert client.calls == [("unregister", "1.0")]
    assert keep.exists()
