"""A version is taken away: closed, quiet, unregistered, and only then ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.management import InMemoryManagement, version_of

from dlrm_factory.errors import ServingError
from dlrm_factory.host.worker_file import WorkerFile, WorkerFolder, worker_folder
from dlrm_factory.requests.answers import answer_going_away
from dlrm_factory.tools.rollout import removing, turning_away
from dlrm_factory.tools.rollout.removing import processes_of, remove_version
from dlrm_factory.tools.server.management import Worker
from dlrm_factory.tools.server.processes import MARK
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


def start(folder: Path, temporary: Path, *words: str, marked: bool = True) -> subprocess.Popen[bytes]:
    """A process in ``folder``, of the server with this temporary folder or, not ``marked``, of none."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    environment |= {"TMPDIR": str(temporary), **({MARK: "/run"} if marked else {})}
    code = "import sys, time; time.sleep(60)"
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder, env=environment)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A worker of the version, another process of it, its guard, one of another version, and an operator's shell."""
    (tmp_path / "model").mkdir()
    (tmp_path / "else").mkdir()
    started = [
        start(tmp_path / folder, tmp_path, *words)
        for folder, *words in (("model",), ("model",), ("model", "/x/guard_process.py"), ("else",))
    ]
    started.append(start(tmp_path / "model", tmp_path, marked=False))
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
    assert [lives(each.pid) for each in processes] == [False, False, True, True, True]
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


@pytest.mark.usefixtures("parking")
def test_a_server_that_does_not_say_what_waits_leaves_no_worker_behind(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = processes[0].pid
    client = Client(
        own_file(tmp_path, worker), version_of("2.0", pids=(101,)), version_of("1.0", pids=(worker,))
    )

    def fail(*_: Any) -> None:
        raise ServingError("too busy")

    monkeypatch.setattr(client, "describe", fail)
    remove_version(client, "dlrm", "1.0", temporary=tmp_path, folder=None)
    assert client.calls == [("close", "1.0", 1), ("unregister", "1.0")]
    assert [lives(each.pid) for each in processes] == [False, False, True, True, True]


@pytest.mark.usefixtures("parking")
def test_a_worker_that_was_started_again_after_the_queue_was_closed_ends_too(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = processes[0].pid
    client = Client(
        own_file(tmp_path, worker), version_of("2.0", pids=(101,)), version_of("1.0", pids=(worker,))
    )
    unregister = client.unregister

    def restart(model: str, version: str) -> None:
        unregister(model, version)
        processes.append(start(tmp_path / "model", tmp_path))

    monkeypatch.setattr(client, "unregister", restart)
    remove_version(client, "dlrm", "1.0", temporary=tmp_path, folder=None)
    assert not lives(processes[-1].pid)


@pytest.mark.usefixtures("parking")
@pytest.mark.parametrize("registered", [True, False])
def test_an_interrupted_removal_is_finished_by_the_next_one(
    tmp_path: Path,
    processes: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    registered: bool,
) -> None:
    monkeypatch.setattr(removing, "_ENDS_ITSELF_S", 0.05)
    folder = tmp_path / "rollout-1234"
    folder.mkdir()
    processes.append(start(folder, tmp_path))
    worker = processes[-1].pid
    file = own_file(tmp_path, worker)
    client = Client(file, version_of("2.0", pids=(101,)))
    if registered:
        # TorchServe forgets workers when a queue is closed.
        client.found["1.0"] = version_of("1.0", wanted=0)
    remove_version(client, "dlrm", "1.0", temporary=tmp_path, folder=folder)
    assert client.calls == [("unregister", "1.0")] * registered
    # What it had was scored.
    assert client.turned_away == [False] * registered
    assert file.retired
    assert not lives(worker)
    assert not folder.exists()


def test_workers_that_have_told_no_pid_yet_are_passed_over(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    # Of another server.
    processes.append(start(tmp_path / "model", tmp_path / "else"))
    found = version_of("1.0", pids=(-1, 0, processes[0].pid))
    pids = {each.pid for each in processes_of(found, tmp_path)}
    assert pids == {processes[0].pid, processes[1].pid}


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


class NeverReady(InMemoryManagement):
    """Server whose version 1.0 has a worker only once its handler turns requests away."""

    def __init__(self, folder: Path, waiting: int, pid: int) -> None:
        super().__init__(version_of("2.0", pids=(101,)), version_of("1.0", pids=(-1,), ready=False))
        self._folder, self._waits, self._pid = folder, waiting, pid
        self.hangs = False

    def describe(self, model: str, version: str | None = None) -> Any:
        return replace(super().describe(model, version), waiting=0 if self._turns_away() else self._waits)

    def versions(self, model: str) -> list[Any]:
        if "1.0" in self.found and self._turns_away():
            self.found["1.0"] = version_of("1.0", pids=(201,))
        return super().versions(model)

    def workers(self, model: str, version: str | None = None) -> list[Any]:
        return [Worker(id=str(i), pid=i, ready=False) for i in range(1, 4)]

    def unregister(self, model: str, version: str) -> None:
        self.hangs = lives(self._pid)
        self.calls.append(("turns away", self._turns_away()))
        super().unregister(model, version)

    def _turns_away(self) -> bool:
        return "TurnsAway" in (self._folder / "h.py").read_text()


@pytest.mark.parametrize(
    ("name", "waiting", "stands_in"), [("rollout-1", 2, True), ("rollout-1", 0, False), ("x", 2, False)]
)
def test_who_waits_for_a_version_that_never_comes_up_is_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, waiting: int, stands_in: bool
) -> None:
    folder = tmp_path / name
    (folder / "MAR-INF").mkdir(parents=True)
    (folder / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"handler": "h.py"}}')
    (folder / "h.py").write_text("raise SystemExit")
    monkeypatch.setattr(removing, "_ENDS_ITSELF_S", 0.05)
    with start(folder, tmp_path) as hangs:
        client = NeverReady(folder, waiting, hangs.pid)
        remove_version(client, "dlrm", "1.0", temporary=tmp_path, folder=folder)
        # One that hangs while it loads is started again by TorchServe.
        assert client.hangs is not stands_in
        assert not lives(hangs.pid)
    assert client.calls[-2:] == [("turns away", stands_in), ("unregister", "1.0")]


def test_the_handler_that_stands_in_answers_as_workers_do() -> None:
    told: list[tuple[Any, ...]] = []
    context = SimpleNamespace(
        set_response_status=lambda *given: told.append(given),
        set_response_content_type=lambda *given: told.append(given),
    )
    handler = turning_away.TurnsAway()
    handler.initialize(context)
    expected = answer_going_away()
    assert handler.handle([{}, {}], context) == [expected.body] * 2
    phrase = "Service Unavailable"
    assert told[:2] == [(expected.status, phrase, 0), (0, expected.content_type)]
    # TorchServe takes the one class of a handler's file.
    classes = [each for each in vars(turning_away).values() if isinstance(each, type)]
    assert [each for each in classes if each.__module__ == turning_away.__name__] == [turning_away.TurnsAway]
