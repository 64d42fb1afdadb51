"""Two versions side by side: workers must fit in memory, tables should."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.management import version_of

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.bench.memory.smaps import Memory
from dlrm_factory.tools.rollout import room
from dlrm_factory.tools.rollout.room import check_room

MB = 10**6
STATE: Any = SimpleNamespace(pid=os.getpid(), tmp="/tmp")


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two workers of 100 MB each, whose tables of 300 MB are one file; the new archive's take 500 MB."""
    tables = tmp_path / "tables.bin"
    with tables.open("wb") as file:
        file.truncate(300 * MB)
    memory = Memory(
        private=150 * MB,
        shared=0,
        proportional=0,
        table_pages=0,
        lone_table_pages=50 * MB,
        private_table_copies=0,
    )
    monkeypatch.setattr(room, "processes_of", lambda found, temporary: [psutil.Process()] * 2)
    monkeypatch.setattr(room, "memory_of", lambda pid, name: memory)
    monkeypatch.setattr(room, "mapped_file", lambda pid, name: tables)
    monkeypatch.setattr(
        room, "read_archive_listing", lambda path: SimpleNamespace(files={"tables.bin": 500 * MB})
    )


def check(available: int, pids: tuple[int, ...] = (1, 2), **options: Any) -> list[str]:
    told: list[str] = []
    old = version_of("1.0", pids=pids, wanted=2)
    check_room(Path("new.mar"), old, STATE, available=available * MB, tell=told.append, **options)
    return told


def test_all_that_fits_is_not_spoken_of() -> None:
    assert check(1000) == []


def test_tables_that_do_not_fit_are_a_warning_with_both_figures() -> None:
    (line,) = check(999)
    assert "tables of both versions take 800.0 MB, and 799.0 MB of memory are left" in line


def test_workers_that_do_not_fit_are_refused_with_both_figures() -> None:
    with pytest.raises(
        ServingError, match=r"needs 200.0 MB for 2 workers .* 199.0 MB of memory are left.*--may"
    ):
        check(199)
    (line,) = check(199, may_lack=True)
    assert "warning: a second version needs 200.0 MB" in line


def test_as_many_workers_are_reckoned_as_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "processes_of", lambda found, temporary: [psutil.Process()])
    # The second has not started yet.
    with pytest.raises(ServingError, match=r"needs 200.0 MB for 2 workers"):
        check(199, pids=(1, -1))


def test_the_kernel_is_asked_for_the_server_s_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def available(*, membership: Path) -> int:
        asked.append(membership)
        return 1000 * MB

    monkeypatch.setattr(room, "memory_available", available)
    check_room(Path("new.mar"), version_of("1.0", pids=(1, 2), wanted=2), STATE)
    assert asked == [Path(f"/proc/{os.getpid()}/cgroup")]
