"""Large files are read once a host; any change to them, or to what they are checked against, reads them again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.lock_holder import lock_holder

from dlrm_factory.weights.stamps import check_once


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLRM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tables.bin").write_bytes(b"rows")
    return tmp_path / "tables.bin"


class Counter:
    calls = 0

    def __call__(self) -> None:
        self.calls += 1


def test_a_check_that_passed_is_not_repeated(file: Path, cache: Path) -> None:
    check = Counter()
    assert [check_once([file], "seal", check) for _ in range(3)] == [True, False, False]
    assert check.calls == 1
    (stamp,) = cache.glob("*.checked")
    assert stamp.stat().st_mode & 0o777 == 0o600


def test_who_asks_for_it_checks_again(file: Path) -> None:
    def fail() -> None:
        raise ValueError("damaged since")

    check = Counter()
    assert check_once([file], "seal", check)
    assert check_once([file], "seal", check, again=True)
    assert not check_once([file], "seal", check)
    assert check.calls == 2
    with pytest.raises(ValueError, match="damaged since"):
        check_once([file], "seal", fail, again=True)
    assert check_once([file], "seal", check)  # a pass before it counts no more


def test_a_changed_file_is_checked_again(file: Path) -> None:
    check = Counter()
    check_once([file], "seal", check)
    status = file.stat()
    file.write_bytes(b"ROWS")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # only the time of its change tells
    assert check_once([file], "seal", check)
    assert check_once([file], "another seal", check)
    file.replace(file.with_name("moved.bin"))
    file.write_bytes(b"ROWS")
    assert check_once([file], "seal", check)
    assert check.calls == 4


def test_a_check_that_failed_is_repeated(file: Path) -> None:
    def fail() -> None:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            check_once([file], "seal", fail)
    check = Counter()
    assert check_once([file], "seal", check)
    assert check.calls == 1


def test_a_process_that_was_killed_leaves_no_pass(file: Path, cache: Path) -> None:
    check = Counter()
    check_once([file], "seal", check)
    (stamp,) = cache.glob("*.checked")
    stamp.write_bytes(b"")
    assert check_once([file], "seal", check)
    assert check.calls == 2


@pytest.mark.parametrize("spoil", ["writable by all", "a file"])
def test_without_a_cache_every_load_checks(file: Path, cache: Path, spoil: str) -> None:
    if spoil == "a file":
        cache.write_text("")
    else:
        cache.mkdir()
        cache.chmod(0o777)
    check = Counter()
    assert all(check_once([file], "seal", check) for _ in range(2))
    assert check.calls == 2


def test_a_stamp_that_is_a_link_is_not_followed(file: Path, cache: Path, tmp_path: Path) -> None:
    check = Counter()
    check_once([file], "seal", check)
    (stamp,) = cache.glob("*.checked")
    stamp.unlink()
    (tmp_path / "elsewhere").write_text("passed\n")
    stamp.symlink_to(tmp_path / "elsewhere")
    assert check_once([file], "seal", check)


def test_old_stamps_are_removed(file: Path, cache: Path) -> None:
    check_once([file], "old", Counter())
    (old,) = cache.glob("*.checked")
    moment = time.time() - 31 * 24 * 3600
    os.utime(old, (moment, moment))
    check_once([file], "new", Counter())
    assert not old.exists()
    assert not check_once([file], "new", Counter())


def _check_slowly(file: Path, log: Path) -> None:
    def check() -> None:
        time.sleep(0.2)
        with log.open("a") as lines:
            lines.write("checked\n")

    check_once([file], "seal", check)


def test_workers_that_start_together_check_once(file: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_check_slowly, args=(file, tmp_path / "log")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert (tmp_path / "log").read_text() == "checked\n"


@contextmanager
def _checking(file: Path) -> Iterator[None]:
    """Block that runs inside of the check of ``file``."""
    entered, leave = threading.Event(), threading.Event()

    def check() -> None:
        entered.set()
        leave.wait(120)

    thread = threading.Thread(target=check_once, args=([file], "seal", check))
    thread.start()
    try:
        assert entered.wait(60)
        yield
    finally:
        leave.set()
        thread.join(60)


def test_a_worker_that_is_killed_while_it_checks_blocks_nobody(file: Path) -> None:
    check, results = Counter(), []
    with lock_holder(lambda: _checking(file)) as holder:
        waiting = threading.Thread(target=lambda: results.append(check_once([file], "seal", check)))
        waiting.start()
        waiting.join(0.3)
        assert check.calls == 0
        holder.kill()
        waiting.join(60)
    assert results == [True]
    assert check.calls == 1
