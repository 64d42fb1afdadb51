"""All models of a server finish what they have, and take nothing more."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.management import InMemoryManagement, version_of

from dlrm_factory.host.worker_file import WorkerFile, WorkerFolder, worker_folder
from dlrm_factory.tools.server import draining
from dlrm_factory.tools.server.draining import drain_models


@pytest.fixture
def files(tmp_path: Path) -> list[WorkerFile]:
    return [WorkerFolder(worker_folder("/models/abc", tmp_path), pid).own for pid in (101, 102)]


@pytest.fixture
def client() -> InMemoryManagement:
    return InMemoryManagement(version_of("1.0", pids=(101, 102)), version_of("2.0"))


def test_new_requests_are_refused_and_those_that_wait_are_waited_for(
    client: InMemoryManagement, files: list[WorkerFile], tmp_path: Path
) -> None:
    client.waiting = [3, 0, 2, 0]
    told: list[str] = []
    assert drain_models(client, temporary=tmp_path, seconds=10, tell=told.append)
    # A version without workers takes no requests anyway.
    assert client.calls == [("close", "1.0", 2)]
    assert told == ["3 requests wait, 0 workers are at work", "2 requests wait, 0 workers are at work"]
    assert not any(file.turns_away for file in files)


def test_after_the_bound_workers_turn_away_what_is_left(
    client: InMemoryManagement, files: list[WorkerFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "_TURN_AWAY_S", 0.05)
    files[1].busy = True
    assert not drain_models(client, temporary=tmp_path, seconds=0.05)
    assert [file.turns_away for file in files] == [True, True]


def test_a_worker_that_has_just_answered_may_have_another_batch_on_its_way(
    client: InMemoryManagement, files: list[WorkerFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "_TURN_AWAY_S", 0.0)
    monkeypatch.setattr(WorkerFile, "silent_s", lambda self: 0.05)
    assert not drain_models(client, temporary=tmp_path, seconds=0.3)
