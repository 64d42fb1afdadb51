"""A rank's part in the end of its group; no other rank is started here."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dlrm_factory.errors import GroupError
from dlrm_factory.host.process import process_state
from dlrm_factory.requests.answers import Answer, answer_scaled_away
from handler import group
from handler.group import WorkerGroup, hosts_of, in_group

HTTP = {"explain": "False"}
GRPC = {"explain": {"content-type": ""}}


def test_several_ranks_are_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, expected in ((None, False), ("1", False), ("2", True)):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        assert in_group() is expected
    monkeypatch.delenv("WORLD_SIZE")
    assert (hosts_of(None), hosts_of({"minWorkers": 1}), hosts_of({"hosts": 3})) == (1, 1, 3)
    assert in_group(3)


def state_within(pid: int, wanted: str, seconds: float = 10.0) -> str:
    end = time.monotonic() + seconds
    while process_state(pid) not in wanted and time.monotonic() < end:
        time.sleep(0.01)
    return process_state(pid)


def test_states_of_a_process() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert process_state(process.pid) in "RSD"
        process.send_signal(signal.SIGSTOP)
        assert state_within(process.pid, "T") == "T"
        process.kill()
        assert state_within(process.pid, "Z") == "Z"
    assert process_state(process.pid) == "X"


# The parent of a rank, as torchrun is; the rank says that it is ready and stands still.
RANK = """
import os, signal
from dlrm_factory.host.process import end_with_parent
end_with_parent(os.getppid())
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {RANK!r}])
time.sleep(60)
"""


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_with_torchrun() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=root, stdout=subprocess.PIPE) as parent:
        rank = int(parent.stdout.readline())
        assert state_within(rank, "T") == "T"
        parent.kill()
    assert state_within(rank, "XZ") in "XZ"


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> WorkerGroup:
    made = WorkerGroup(None, None, None)
    monkeypatch.setattr(group.threading, "Timer", lambda *_, **__: made)
    made.daemon, made.start = True, lambda: None
    made._lose(GroupError("rank 1 is gone"))
    return made


ANSWERS = [Answer(status=200, body=b"{}"), answer_scaled_away()]


def test_the_batch_that_lost_the_group_is_the_last(lost: WorkerGroup) -> None:
    ids = {0: "a", 1: "b"}
    first, second = lost.last_answers(ANSWERS, [HTTP, HTTP], ids)
    # Errors alone, for TorchServe answers them again.
    assert (first.status, second) == (503, ANSWERS[1])
    assert b"GroupLost" in first.body
    # TorchServe knows no such request, and stops there.
    assert list(ids) == [0, 1, -1]
    assert ids[-1].startswith("none, ")


def test_batches_that_take_no_second_answer_are_left_as_they_are(lost: WorkerGroup) -> None:
    for answering, headers in ((lost, [HTTP, GRPC]), (WorkerGroup(None, None, None), [HTTP, HTTP])):
        ids = {0: "a", 1: "b"}
        assert answering.last_answers(ANSWERS, headers, ids) is ANSWERS
        assert list(ids) == [0, 1]
    assert lost.last_answers(ANSWERS, [HTTP, HTTP], None) is ANSWERS


def test_a_lost_group_ends_after_its_answers(lost: WorkerGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(WorkerGroup, "end", lambda _: order.append("end"))
    worker, frontend = socket.socketpair()
    with worker, frontend:
        WorkerGroup(None, None, None)._end_after_answers(worker)
        assert order == []
        frontend.settimeout(5)
        lost._end_after_answers(worker)
        assert (frontend.recv(1), order) == (b"", ["end"])


def test_loading_has_its_time_once_all_hosts_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(group, "_end", lambda _: ended.set())
    for loads in (True, False):
        made = WorkerGroup(None, None, None)
        made._loading = group._limit_loading(0.2, None)
        if loads:
            made.loaded()
        assert ended.wait(0.5 if loads else 10) is not loads
