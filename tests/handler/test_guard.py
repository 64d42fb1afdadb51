"""A killed worker's batch is answered by its guard, and no answer goes where TorchServe takes it for another."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.worker_wire import fresh_module, inference, request

from dlrm_factory.host.worker_file import Phase, WorkerFile, parking_path
from dlrm_factory.requests.answers import answer_group_lost, answer_worker_lost
from dlrm_factory.tools.sidecar.parking import Parking
from handler import guard, guard_process
from handler.guard import note_phases, start_guard
from handler.guard_process import HeldBatch, Messages, park, retire, stand_in
from handler.wire import KNOWN_VERSION, Observers, error_tail, install_reads, install_whole_messages

LOST = answer_worker_lost()
TAIL = error_tail(LOST.status, "Service Unavailable", LOST.content_type, LOST.body)
HTTP = {b"explain": b"False"}


def test_the_guard_knows_the_worker_s_phases_and_says_what_workers_say() -> None:
    names = ("IDLE", "READING", "HELD", "ANSWERING", "SENDING")
    assert [Phase[name] for name in names] == [getattr(guard_process, name) for name in names]
    assert guard_process._TEXT in LOST.body
    assert b"GroupLost" in answer_group_lost().body


def take(end: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (part := end.recv(size - len(found))):
        found += part
    return found


def take_int(end: socket.socket) -> int:
    return struct.unpack("!i", take(end, 4))[0]


def take_field(end: socket.socket) -> bytes:
    return take(end, take_int(end))


def read_message(end: socket.socket) -> tuple[int, list[tuple[bytes, int, bytes]]]:
    """Code, and (id, status, body) of each answer, as TorchServe reads them."""
    end.settimeout(20)
    code = take_int(end)
    take_field(end)
    answers = []
    while (length := take_int(end)) != -1:
        name = take(end, length)
        take_field(end)
        status = take_int(end)
        take_field(end)
        for _ in range(2 * take_int(end)):
            take_field(end)
        answers.append((name, status, take_field(end)))
    return code, answers


@pytest.fixture
def file(tmp_path: Path) -> WorkerFile:
    return WorkerFile(tmp_path / "1.worker", create=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for what does not come."""
    monkeypatch.setattr(guard_process, "_NEXT_BATCH_S", 0.1)


@pytest.fixture
def worker_and_frontend() -> Iterator[tuple[socket.socket, socket.socket]]:
    worker, frontend = socket.socketpair()
    with worker, frontend:
        yield worker, frontend


Play = Callable[[socket.socket], Any]


def stood_in(file: WorkerFile, ends: tuple[socket.socket, socket.socket], frontend: Play) -> Any:
    """Result of ``frontend``, which plays TorchServe while a guard stands in, and sees the connection end."""
    worker, other = ends
    thread = threading.Thread(
        target=stand_in, args=(Messages(worker, TAIL), HeldBatch(file._map, *file.PLACES))
    )
    thread.start()
    try:
        return frontend(other)
    finally:
        if other.fileno() >= 0:
            other.shutdown(socket.SHUT_WR)
        thread.join(20)
        assert not thread.is_alive()


def last_of(*ids: bytes) -> tuple[int, list[tuple[bytes, int, bytes]]]:
    """Errors for ``ids``, and one that ends the worker."""
    return 200, [(each, 503, LOST.body) for each in (*ids, b"none, for the worker is gone")]


@pytest.mark.parametrize("phase", [Phase.HELD, Phase.ANSWERING])
def test_a_batch_that_is_held_is_answered(file: WorkerFile, worker_and_frontend: Any, phase: Phase) -> None:
    file.hold(b"a\nb", by_http=True)
    file.phase = phase
    assert stood_in(file, worker_and_frontend, read_message) == last_of(b"a", b"b")


def test_calls_by_grpc_are_left_to_torchserve_and_the_next_batch_is_the_last(
    file: WorkerFile, worker_and_frontend: Any
) -> None:
    def frontend(end: socket.socket) -> Any:
        first = read_message(end)
        end.sendall(inference(request(b"{}", request_id=b"c", headers=HTTP), request(b"{}", request_id=b"d")))
        second = read_message(end)
        end.sendall(inference(request(b"{}" * 400_000, request_id=b"e", headers=HTTP)))
        return first, second, read_message(end)

    file.hold(b"a\nb", by_http=False)
    found = stood_in(file, worker_and_frontend, frontend)
    assert found == ((503, []), (503, []), last_of(b"e"))


def test_a_batch_that_was_half_read_is_read_to_its_end(file: WorkerFile, worker_and_frontend: Any) -> None:
    file.hold(b"before", by_http=True)
    file.phase = Phase.READING
    batch = inference(request(b"x" * 700_000, request_id=b"a", headers=HTTP))

    def frontend(end: socket.socket) -> Any:
        end.sendall(batch[100:])
        first = read_message(end)
        end.sendall(inference(request(b"{}", request_id=b"b", headers=HTTP)))
        return first, read_message(end)

    assert stood_in(file, worker_and_frontend, frontend) == ((503, []), last_of(b"b"))


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.SENDING])
def test_a_batch_that_comes_after_the_last_answer_is_answered(
    file: WorkerFile, worker_and_frontend: Any, phase: Phase
) -> None:
    file.hold(b"before", by_http=True)
    file.phase = phase

    def frontend(end: socket.socket) -> Any:
        end.sendall(inference(request(b"{}", request_id=b"a", headers=HTTP)))
        return read_message(end)

    assert stood_in(file, worker_and_frontend, frontend) == last_of(b"a")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.SENDING, Phase.READING])
def test_nothing_is_sent_where_nobody_may_wait_for_it(
    file: WorkerFile, worker_and_frontend: Any, phase: Phase
) -> None:
    file.hold(b"before", by_http=True)
    file.phase = phase

    def frontend(end: socket.socket) -> bytes:
        end.settimeout(20)
        return take(end, 1 << 16)

    found = stood_in(file, worker_and_frontend, frontend)
    # A batch whose bytes have come has somebody who waits.
    assert found == (struct.pack("!ii", 503, 55) + guard_process._TEXT + b"\xff" * 4) * (
        phase == Phase.READING
    )


def test_a_connection_that_torchserve_has_ended_is_left(file: WorkerFile, worker_and_frontend: Any) -> None:
    file.hold(b"a", by_http=True)
    stood_in(file, worker_and_frontend, socket.socket.close)


def test_phases_follow_the_conversation(file: WorkerFile) -> None:
    observers = Observers()
    note_phases(file, observers)
    (waits,), (reads,), (writes,) = observers.waits, observers.reads, observers.writes
    here = socket.socket()
    with here:
        seen = [file.phase]
        for _ in range(2):
            waits(here)
            seen.append(file.phase)
            # Of a large message.
            for step in (reads, lambda: waits(here), reads):
                step()
                seen.append(file.phase)
            file.hold(b"a", by_http=True)
            file.begin_answers(0.0)
            writes()
            seen.append(file.phase)
    once = [Phase.IDLE, Phase.READING, Phase.READING, Phase.READING, Phase.SENDING]
    assert seen == [Phase.IDLE, *once, *once]


WORKER = """
import sys, time
from pathlib import Path
from dlrm_factory.host.worker_file import WorkerFile
from dlrm_factory.requests.answers import answer_worker_lost
from handler import guard
file = WorkerFile(Path(sys.argv[1]), create=True)
started = guard._start(file, [int(each) for each in sys.argv[2:]], answer_worker_lost())
file.hold(b"a", by_http=True)
print(started.pid, flush=True)
time.sleep(60)
"""


def watches(pid: int) -> bool:
    """Return True once the guard ``pid`` hears of its worker's end."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return any("pidfd" in each for each in found)


def wait_until_it_watches(pid: int) -> None:
    end = time.monotonic() + 20
    while not watches(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("phase", [Phase.HELD, Phase.ANSWERING, Phase.READING, Phase.IDLE])
def test_the_batch_of_a_retired_worker_is_answered_before_its_connection_is_parked(
    file: WorkerFile,
    worker_and_frontend: tuple[socket.socket, socket.socket],
    tmp_path: Path,
    phase: Phase,
) -> None:
    worker, frontend = worker_and_frontend
    parking = Parking(tmp_path)
    file.hold(b"a", by_http=True)
    file.phase = phase
    more = phase != Phase.READING
    if more:
        # What TorchServe still had.
        frontend.sendall(inference(request(b"{}", request_id=b"b", headers=HTTP)))
    batch = HeldBatch(file._map, *file.PLACES)
    thread = threading.Thread(
        target=retire, args=(Messages(worker, TAIL), batch, str(parking_path(tmp_path)), [worker])
    )
    thread.start()
    answered = (200, [(b"a", 503, LOST.body)])
    if phase != Phase.IDLE:
        assert read_message(frontend) == ((503, []) if phase == Phase.READING else answered)
    if more:
        assert read_message(frontend) == (200, [(b"b", 503, LOST.body)])
    thread.join(20)
    assert not thread.is_alive()
    end = time.monotonic() + 20
    while len(parking) != 1:
        assert time.monotonic() < end
        time.sleep(0.01)
    # Neither an end nor an answer that nobody waits for.
    assert select.select([frontend], [], [], 0.1)[0] == []
    parking.close()


def test_a_socket_that_nobody_reads_does_not_hold_the_guard_up(
    worker_and_frontend: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_process, "_TAKEN_S", 0.05)
    worker, _ = worker_and_frontend
    path = str(tmp_path / "parking")
    taken = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(path)
        thread = threading.Thread(
            target=lambda: taken.extend(iter(lambda: park(path, [worker]), False)), daemon=True
        )
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert taken


@pytest.mark.slow
@pytest.mark.parametrize("somebody_parks", [True, False])
def test_the_connection_of_a_retired_worker_stays_where_it_is_parked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, somebody_parks: bool
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    parking = Parking(tmp_path) if somebody_parks else None
    ends = [socket.socketpair() for _ in range(2)]
    descriptors = [worker.fileno() for worker, _ in ends]
    command = [sys.executable, "-c", WORKER, str(tmp_path / "1.worker"), *map(str, descriptors)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, pass_fds=descriptors) as process:
        assert process.stdout is not None
        guard_pid = int(process.stdout.readline())
        wait_until_it_watches(guard_pid)
        for worker, _ in ends:
            worker.close()
        file = WorkerFile(tmp_path / "1.worker")
        file.phase = Phase.SENDING
        file.retired = True
        process.kill()
    watched = os.pidfd_open(guard_pid)
    assert select.select([watched], [], [], 20)[0]
    os.close(watched)
    for _, frontend in ends:
        frontend.settimeout(20)
        if parking is not None:
            # Nothing has come, not even the end.
            assert select.select([frontend], [], [], 0.1)[0] == []
    if parking is not None:
        assert len(parking) == 2
        parking.close()
    # The guard's own way: nobody waited, so nothing is sent.
    assert [take(frontend, 1) for _, frontend in ends] == [b"", b""]
    for _, frontend in ends:
        frontend.close()


@pytest.mark.slow
def test_the_guard_of_a_killed_worker_answers_and_ends(tmp_path: Path) -> None:
    ends = [socket.socketpair() for _ in range(2)]
    descriptors = [worker.fileno() for worker, _ in ends]
    command = [sys.executable, "-c", WORKER, str(tmp_path / "1.worker"), *map(str, descriptors)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, pass_fds=descriptors) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        for worker, _ in ends:
            worker.close()
        # TorchServe reads a worker's output to its end.
        taken = [Path(f"/proc/{pid}/fd/{number}").readlink() for number in (1, 2)]
        assert taken == [Path("/dev/null")] * 2
        wait_until_it_watches(pid)
        process.kill()
    assert read_message(ends[0][1]) == last_of(b"a")
    ends[0][1].close()
    with ends[1][1] as other:
        other.settimeout(20)
        assert other.recv(1) == b""


def test_no_guard_is_started_where_the_wire_is_torchserve_s_own(
    file: WorkerFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(guard, "_start", lambda *given: started.append(given) or "guard")
    protocol, service, context = (
        fresh_module(f"ts.{name}") for name in ("protocol.otf_message_handler", "service", "context")
    )
    monkeypatch.delitem(sys.modules, guard._PROTOCOL, raising=False)
    assert start_guard(file, [3], LOST) is None
    monkeypatch.setitem(sys.modules, guard._PROTOCOL, protocol)
    assert install_reads(protocol, KNOWN_VERSION)
    assert start_guard(file, [3], LOST) is None
    assert install_whole_messages(protocol, service, context, KNOWN_VERSION)
    assert start_guard(None, [3], LOST) is None
    assert start_guard(file, [None], LOST) is None
    assert started == []
    assert start_guard(file, [3, None, 4], LOST) == "guard"
    assert started == [(file, [3, 4], LOST)]

    def refuse(*_: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(guard, "_start", refuse)
    assert start_guard(file, [3], LOST) is None
    assert "will get 500, not 503: no more processes" in caplog.text
