"""The load generator against a server whose behaviour is known."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from support.loads import load_of

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.bench.http.driving import Watcher, drive
from dlrm_factory.tools.bench.http.finding import find_rate


def test_a_closed_loop_counts_every_answer(stub):
    stub.delay_s = 0.01
    outcome = drive(load_of(stub, connections=4, duration_s=1.0))
    assert outcome.statuses == {200: len(outcome.latencies)}
    assert outcome.failed == 0
    # Four connections, ten milliseconds each: 400 a second, or somewhat fewer on a busy machine.
    assert 50 < outcome.rate <= 400
    assert outcome.samples_in_window == 3 * outcome.answered_in_window
    assert outcome.latency_ms(0) >= 10
    assert stub.connections == 4


def test_requests_arrive_whole_and_in_turn(stub):
    drive(load_of(stub, bodies=[b"first", b"second" * 50_000], connections=1, duration_s=0.3))
    bodies = [request.split(b"\r\n\r\n", 1)[1] for request in stub.requests]
    assert set(bodies) == {b"first", b"second" * 50_000}
    assert all(one != other for one, other in itertools.pairwise(bodies))


def test_arrivals_are_poisson_at_the_asked_rate(stub):
    outcome = drive(load_of(stub, connections=20, rate=300.0, duration_s=2.0))
    count = len(outcome.latencies)
    assert outcome.failed == 0
    assert abs(count - 600) < 5 * np.sqrt(600)
    # A request that found no free connection, on a machine that is busy, was not late by the generator's fault.
    assert 0 < len(outcome.late) <= count


def test_waiting_is_not_hidden(stub):
    """A server that stops for half a second: in an open loop the requests of that time have waited for it."""

    class Pause(Watcher):
        def window_began(self) -> None:
            stub.paused = time.monotonic() + 0.5

    outcome = drive(load_of(stub, connections=50, rate=200.0, duration_s=1.5), Pause())
    slow = int((outcome.latencies > 0.1).sum())
    # A hundred requests came due in the pause, all but the last fifth waited for more than a tenth of a second.
    assert slow > 40
    assert 300 < outcome.latency_ms(99) < 1500


def test_too_few_connections_count_as_waiting(stub):
    stub.delay_s = 0.05
    outcome = drive(load_of(stub, connections=1, rate=40.0, duration_s=1.0))
    # 20 a second can be answered, so the queue grows by 20 requests.
    assert outcome.rate < 30
    assert outcome.latency_ms(90) > 200


def test_errors_are_counted_by_status_and_connections_reopened(stub):
    error = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    stub.answer = lambda request: [error] if len(stub.requests) % 3 == 0 else [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    ]  # fmt: skip
    outcome = drive(load_of(stub, connections=2, duration_s=0.5))
    assert outcome.statuses[503] > 0
    assert outcome.statuses[200] > outcome.statuses[503]
    assert outcome.failed == outcome.statuses[503]
    assert len(outcome.latencies) == outcome.statuses[200]


def test_requests_without_an_answer_are_failures(stub):
    stub.answer = lambda request: []
    outcome = drive(load_of(stub, connections=1, duration_s=0.4))
    assert outcome.failures["connection lost"] > 0
    assert outcome.rate == 0
    assert np.isnan(outcome.latency_ms(50))


def test_requests_are_given_up_in_the_end(stub):
    stub.delay_s = 30.0
    outcome = drive(load_of(stub, connections=2, rate=20.0, duration_s=0.5, timeout_s=0.3))
    assert outcome.failures["timed out"] > 3
    assert not outcome.statuses


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nCont", b"ent-Length: 5\r\n", b"\r\nhel", b"lo"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
    ],
)
def test_answers_come_in_pieces(stub, pieces):
    stub.answer = lambda request: pieces
    outcome = drive(load_of(stub, connections=1, duration_s=0.3))
    assert outcome.statuses.keys() == {200}
    assert outcome.failed == 0


def test_processes_share_the_load(stub):
    stub.delay_s = 0.01
    outcome = drive(load_of(stub, connections=5, duration_s=0.5, processes=2))
    assert stub.connections == 5
    assert outcome.failed == 0
    assert outcome.answered_in_window > 20


def test_a_missing_server_is_one_message(stub):
    load = load_of(stub, connections=1)
    with pytest.raises(ServingError, match=r"no server answers at http://127\.0\.0\.1:1 "):
        drive(type(load)(**{**vars(load), "url": "http://127.0.0.1:1"}))


def test_the_highest_rate_is_found(stub):
    """One connection's answer takes 20 ms, one at a time: beyond 50 a second the queue grows without end."""
    stub.delay_s = 0.02
    runs = []

    def run(load, what):
        runs.append(what)
        return drive(load)

    found = find_rate(load_of(stub, connections=2, duration_s=0.6), bound_ms=150.0, run=run, runs=3)
    assert runs[0] == "closed loop"
    # Each connection may have one answer more in the window, to a request that was sent before it.
    assert 20 < found.closed_loop.rate <= 2 * (0.6 / 0.02 + 1) / 0.6
    assert found.rate > 0
    assert [trial.rate for trial in found.trials] == sorted(trial.rate for trial in found.trials)
    for trial in found.trials:
        assert trial.held == (trial.rate <= found.rate)


def test_no_answer_with_200_ends_the_search(stub):
    stub.answer = lambda request: [b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"]
    with pytest.raises(ServingError, match="no request was answered with 200"):
        find_rate(
            load_of(stub, connections=1, duration_s=0.2), bound_ms=10, run=lambda load, what: drive(load)
        )
