"""Workers tell each other, and are told, by mapped files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlrm_factory.host import worker_file
from dlrm_factory.host.worker_file import Phase, WorkerFolder, find_worker_file, worker_folder

IDS = [f"{i:08d}-0000-4000-8000-000000000000" for i in range(64)]
OTHER = [identifier.replace("4000", "4001") for identifier in IDS]


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_file, "_LOOK_EVERY_S", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worker_folder("/models/abc", tmp_path)


def answer(worker: WorkerFolder, ids: list[str]) -> frozenset[bytes]:
    worker.hold(ids)
    return worker.begin_answers()


def test_a_request_that_another_worker_has_answered_is_known(folder: Path) -> None:
    first, second = WorkerFolder(folder, 1), WorkerFolder(folder, 2)
    assert answer(first, IDS) == frozenset()
    assert answer(second, OTHER) == frozenset()
    assert answer(second, [OTHER[0], IDS[5], IDS[63]]) == {IDS[5].encode(), IDS[63].encode()}


def test_a_request_that_another_worker_only_holds_is_not_answered(folder: Path) -> None:
    first, second = WorkerFolder(folder, 1), WorkerFolder(folder, 2)
    first.hold(IDS)
    assert answer(second, IDS) == frozenset()
    # Of two that hold the same, as after a request was queued again, the later one knows.
    assert len(first.begin_answers()) == len(IDS)
    first.own.phase = Phase.READING
    assert len(answer(second, IDS)) == len(IDS)


def test_what_a_worker_answered_itself_may_come_to_it_alone(folder: Path) -> None:
    worker = WorkerFolder(folder, 1)
    assert answer(worker, IDS) == frozenset()
    assert answer(worker, IDS) == frozenset()


def test_workers_that_come_later_and_those_that_are_gone_are_seen(folder: Path) -> None:
    first = WorkerFolder(folder, 1)
    assert answer(first, IDS) == frozenset()
    for pid in (2, 3, 4):
        late = WorkerFolder(folder, pid)
        mine = [identifier.replace("4000", f"500{pid}") for identifier in IDS]
        assert answer(late, mine) == frozenset()
        assert answer(first, [*mine[:2], OTHER[0]]) == {mine[0].encode(), mine[1].encode()}
    (folder / "2.worker").unlink()
    assert answer(first, [IDS[0].replace("4000", "5002")]) == frozenset()


def test_every_order_of_two_workers_leaves_one_that_sees_the_other(folder: Path) -> None:
    # Each writes before it looks: whoever looks second sees the first.
    first, second = WorkerFolder(folder, 1), WorkerFolder(folder, 2)
    seen = [bool(answer(first, IDS)), bool(answer(second, IDS)), bool(answer(first, IDS))]
    assert seen == [False, True, True]


def test_a_folder_that_is_gone_harms_no_batch(folder: Path) -> None:
    worker = WorkerFolder(folder, 1)
    (folder / "1.worker").unlink()
    folder.rmdir()
    assert answer(worker, IDS) == frozenset()


def test_what_is_no_file_of_a_worker_is_passed_over(folder: Path) -> None:
    worker = WorkerFolder(folder, 1)
    (folder / "2.worker").write_bytes(b"short")
    (folder / "3.worker").write_bytes(b"x" * (1 << 20))
    (folder / "notes.txt").write_bytes(b"")
    (folder / "4.worker").symlink_to(folder / "1.worker")
    assert answer(worker, IDS) == frozenset()
    for pid in (2, 3, 4):
        assert find_worker_file(pid, folder.parents[1]) is None


def test_draining_is_seen_from_another_process(folder: Path) -> None:
    worker = WorkerFolder(folder, 77)
    code = """
import sys
from pathlib import Path
from dlrm_factory.host.worker_file import find_worker_file
file = find_worker_file(77, Path(sys.argv[1]))
assert file is not None and not file.drain and file.holding
file.drain = True
"""
    worker.own.holding = True
    subprocess.run([sys.executable, "-c", code, str(folder.parents[1])], check=True, timeout=60)
    assert worker.own.drain


def test_models_have_folders_of_their_own(tmp_path: Path) -> None:
    one, other = worker_folder("/models/a", tmp_path), worker_folder("/models/b", tmp_path)
    assert one != other
    assert worker_folder("/models/a", tmp_path) == one
    assert one.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    root = tmp_path / f"dlrm-workers-{os.getuid()}"
    root.mkdir(mode=0o700)
    root.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written by others"):
        worker_folder("/models/a", tmp_path)
    root.rmdir()
    root.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        worker_folder("/models/a", tmp_path)


def test_files_of_workers_long_dead_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    answer(WorkerFolder(folder, ended.pid), IDS)
    path = folder / f"{ended.pid}.worker"
    # Its requests may still come back to somebody.
    assert answer(WorkerFolder(folder, os.getpid()), IDS[:1]) == {IDS[0].encode()}
    monkeypatch.setattr(worker_file, "_KEEP_DEAD_S", 0.0)
    WorkerFolder(folder, os.getpid())
    assert not path.exists()


def test_the_folder_is_not_looked_at_for_each_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_file, "_LOOK_EVERY_S", 0.25)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    worker = WorkerFolder(folder, 1)
    answer(worker, IDS)
    answer(WorkerFolder(folder, 2), OTHER)
    assert answer(worker, OTHER) == frozenset()
    now[0] += 0.25
    assert len(answer(worker, OTHER)) == len(OTHER)


def test_more_ids_than_fit_are_cut(folder: Path) -> None:
    worker = WorkerFolder(folder, 1)
    answer(worker, IDS * 1000)
    assert answer(WorkerFolder(folder, 2), [IDS[3]]) == {IDS[3].encode()}


def test_a_file_says_for_how_long_nothing_was_answered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = WorkerFolder(folder, 1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    assert worker.own.silent_s() > 99
    answer(worker, IDS)
    assert worker.own.silent_s() == 0
