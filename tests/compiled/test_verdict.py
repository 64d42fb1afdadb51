"""Workers of a host decide one at a time."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from support.lock_holder import lock_holder

from dlrm_factory.compiled.dense_library import Verdict, one_at_a_time, read_verdict, write_verdict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdict-0.json"


def test_threads_take_turns_and_the_first_decides(path: Path) -> None:
    decided = []

    def decide(number: int) -> None:
        with one_at_a_time(path):
            if read_verdict(path) is None:
                decided.append(number)
                write_verdict(path, Verdict("eager", f"decided by {number}"))

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(decided) == 1
    assert read_verdict(path) == Verdict("eager", f"decided by {decided[0]}")


def test_a_killed_process_blocks_nobody_and_the_others_say_that_they_wait(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    entered = threading.Event()

    def enter() -> None:
        with one_at_a_time(path):
            entered.set()

    with lock_holder(lambda: one_at_a_time(path)) as holder:
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.3)
        assert "Waiting for another process" in caplog.text
        holder.kill()
        waiting.join(60)
    assert entered.is_set()


def test_a_lock_on_one_file_holds_no_other(path: Path) -> None:
    with one_at_a_time(path), one_at_a_time(path.with_name("library.so")):
        write_verdict(path, Verdict("compiled"))
    assert read_verdict(path) == Verdict("compiled")


def test_an_error_in_the_block_gives_the_turn_back(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="no compiler"), one_at_a_time(path):
        raise ValueError("no compiler")
    with one_at_a_time(path):
        pass
    assert "Waiting" not in caplog.text


def test_a_folder_that_takes_no_lock_is_an_os_error(path: Path) -> None:
    path.with_name(f"{path.name}.lock").mkdir()
    with pytest.raises(OSError, match="lock"), one_at_a_time(path):
        pass
