"""A generator process: ``python -m dlrm_factory.tools.bench.http.generator`` reads a job and sends its requests.

The job comes on standard input, messages go to standard output (see `messages`).
"""

from __future__ import annotations

import asyncio
import gc
import random
import ssl
import sys
import time
from array import array
from collections import Counter, deque
from typing import BinaryIO
from urllib.parse import urlsplit

import msgspec

from dlrm_factory.tools.bench.http.connection import Connection, precise_event_loop
from dlrm_factory.tools.bench.http.messages import (
    Job,
    Measured,
    Progress,
    WindowBegan,
    WindowEnded,
    write_message,
)

__all__ = ["Generator", "main"]

_TELL_S = 0.25
_RECONNECT_S = 0.05


class Generator:
    """Runs one job: opens connections, sends, measures."""

    def __init__(self, job: Job, output: BinaryIO) -> None:
        self._job = job
        self._output = output
        self._random = random.Random(job.seed)
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()  # when each request that found no connection was to be sent
        self._turn = self._random.randrange(len(job.requests))
        self._latencies, self._late = array("d"), array("d")
        self._statuses: Counter[int] = Counter()
        self._failures: Counter[str] = Counter()
        self._answered = self._failed = self._in_window = self._samples = 0
        self._unfinished = 0  # requests of the window on their way or waiting
        self._sending, self._opened = True, False

    async def run(self) -> Measured:
        """Warm up, measure, wait for the answers that are still to come."""
        self._loop = asyncio.get_running_loop()
        await self._open(self._job.connections)
        self._start = self._loop.time()
        self._begin = self._start + self._job.warmup_s
        self._end = self._begin + self._job.duration_s
        self._opened = True
        watch = asyncio.ensure_future(self._watch())
        if self._job.rate is not None:
            self._next = self._start
            self._arrive()
        else:
            self._send_waiting()
        await self._until(self._begin)
        began, cpu = self._loop.time(), time.process_time()
        write_message(self._output, WindowBegan())
        await self._until(self._end)
        window_s, cpu_s = self._loop.time() - began, time.process_time() - cpu
        write_message(self._output, WindowEnded())
        await self._drain()
        watch.cancel()
        return Measured(
            latencies=self._latencies.tobytes(),
            late=self._late.tobytes(),
            statuses=dict(self._statuses),
            failures=dict(self._failures),
            answered_in_window=self._in_window,
            samples_in_window=self._samples,
            window_s=window_s,
            cpu_s=cpu_s,
        )

    def ready(self, connection: Connection) -> None:
        """A connection is free: the request that has waited longest is sent, or in a closed loop the next one."""
        self._connections.add(connection)
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._job.rate is None and self._sending and self._opened:
            self._send_now(connection)
        else:
            self._idle.append(connection)

    def answered(self, connection: Connection, status: int) -> None:
        now = self._loop.time()
        if status == 200:
            self._answered += 1
            if self._begin <= now < self._end:
                self._in_window += 1
                self._samples += self._job.samples[connection.which]
        else:
            self._failed += 1
        if self._begin <= connection.due < self._end:
            self._unfinished -= 1
            self._statuses[status] += 1
            if status == 200:
                self._latencies.append(now - connection.due)

    def lost(self, connection: Connection, *, unanswered: bool) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if unanswered:
            self._fail(connection.due, "timed out" if self._is_overdue(connection.due) else "connection lost")
        if self._sending:
            self._loop.create_task(self._reopen())

    async def _open(self, count: int) -> None:
        """The job's connections. OSError if the server does not take them."""
        address = urlsplit(self._job.url)
        port = address.port or (443 if address.scheme == "https" else 80)
        context = ssl.create_default_context() if address.scheme == "https" else None
        for _ in range(count):
            await self._loop.create_connection(
                lambda: Connection(self), address.hostname or "", port, ssl=context
            )

    async def _reopen(self) -> None:
        while self._sending:
            try:
                await self._open(1)
                return
            except OSError:
                self._failures["refused"] += self._begin <= self._loop.time() < self._end
                self._failed += 1
                await asyncio.sleep(_RECONNECT_S)

    def _arrive(self) -> None:
        """Every request that is due by now, then a timer for the next."""
        assert self._job.rate is not None
        now = self._loop.time()
        while self._next <= now and self._next < self._end:
            self._waiting.append(self._next)
            self._unfinished += self._next >= self._begin
            self._next += self._random.expovariate(self._job.rate)
        self._send_waiting()
        if self._next < self._end:
            self._loop.call_at(self._next, self._arrive)

    def _send_waiting(self) -> None:
        if self._job.rate is None:
            while self._idle:
                self._send_now(self._idle.pop())
        while self._waiting and self._idle:
            due = self._waiting.popleft()
            if self._begin <= due:
                self._late.append(self._loop.time() - due)
            self._send(self._idle.pop(), due)

    def _send_now(self, connection: Connection) -> None:
        now = self._loop.time()
        self._unfinished += self._begin <= now < self._end
        self._send(connection, now)

    def _send(self, connection: Connection, due: float) -> None:
        self._turn = (self._turn + 1) % len(self._job.requests)
        connection.send(self._job.requests[self._turn], which=self._turn, due=due)

    def _fail(self, due: float, why: str) -> None:
        self._failed += 1
        if self._begin <= due < self._end:
            self._unfinished -= 1
            self._failures[why] += 1

    def _is_overdue(self, due: float) -> bool:
        return self._loop.time() - due >= self._job.timeout_s

    async def _watch(self) -> None:
        """Tell how far it is, and give up requests that are overdue."""
        while True:
            await asyncio.sleep(_TELL_S)
            elapsed = self._loop.time() - self._start
            progress = Progress(elapsed_s=elapsed, answered=self._answered, failed=self._failed)
            write_message(self._output, progress)
            for connection in [each for each in self._connections if each.busy]:
                if self._is_overdue(connection.due):
                    connection.abort()
            while self._waiting and self._is_overdue(self._waiting[0]):
                self._fail(self._waiting.popleft(), "timed out")

    async def _until(self, moment: float) -> None:
        await asyncio.sleep(moment - self._loop.time())

    async def _drain(self) -> None:
        """Wait for the window's answers, then close."""
        if self._job.rate is None:
            self._sending = False
        deadline = self._loop.time() + self._job.timeout_s + 2 * _TELL_S
        while self._unfinished > 0 and self._loop.time() < deadline:
            await asyncio.sleep(0.005)
        self._sending = False
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)


def main() -> None:
    """Read the job, run it, write the messages. Exits with a line on standard error if the server is not there."""
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    # Nothing here makes cycles, and a collection would be a pause in somebody's latency.
    gc.disable()
    loop = precise_event_loop()
    try:
        measured = loop.run_until_complete(Generator(job, sys.stdout.buffer).run())
    except OSError as error:
        sys.exit(f"no server answers at {job.url} ({error.strerror or error})")
    write_message(sys.stdout.buffer, measured)


if __name__ == "__main__":
    main()
