"""Runs a load in generator processes and joins what they measured."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.bench.http.messages import (
    Job,
    Measured,
    Message,
    Progress,
    WindowBegan,
    WindowEnded,
    read_message,
)
from dlrm_factory.tools.bench.http.outcome import Outcome

__all__ = ["Load", "Watcher", "drive"]

_MODULE = "dlrm_factory.tools.bench.http.generator"


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests and how they are sent; see `messages.Job`. ``processes`` share connections and rate."""

    url: str
    requests: Sequence[bytes]
    samples: Sequence[int]
    connections: int
    rate: float | None = None
    warmup_s: float = 1.0
    duration_s: float = 10.0
    timeout_s: float = 30.0
    processes: int = 1
    seed: int = 0

    @property
    def seconds(self) -> float:
        """Seconds that the load takes, when all is answered at once."""
        return self.warmup_s + self.duration_s


class Watcher:
    """Observer of a run, which does nothing itself."""

    def progressed(self, elapsed_s: float, answered: int, failed: int) -> None:
        """Some times a second."""

    def window_began(self) -> None:
        """All generators have warmed up."""

    def window_ended(self) -> None:
        """All generators have sent their last request."""


def drive(load: Load, watcher: Watcher | None = None) -> Outcome:
    """Sends ``load`` and returns what was measured. Raises ServingError when a generator cannot do its work."""
    watcher = watcher or Watcher()
    measured: list[Measured] = []
    latest: dict[int, Progress] = {}
    began = ended = 0
    with _generators([_job(load, part) for part in range(load.processes)]) as processes:
        for part, message in _messages(processes):
            if isinstance(message, Progress):
                latest[part] = message
                watcher.progressed(
                    message.elapsed_s,
                    sum(each.answered for each in latest.values()),
                    sum(each.failed for each in latest.values()),
                )
            elif isinstance(message, WindowBegan):
                began += 1
                _call_at_last(watcher.window_began, began, load.processes)
            elif isinstance(message, WindowEnded):
                ended += 1
                _call_at_last(watcher.window_ended, ended, load.processes)
            else:
                measured.append(message)
    return _joined(load, measured)


def _call_at_last(call: Callable[[], None], count: int, of: int) -> None:
    if count == of:
        call()


def _job(load: Load, part: int) -> Job:
    """The share of process ``part``."""
    share, left = divmod(load.connections, load.processes)
    return Job(
        url=load.url,
        requests=list(load.requests),
        samples=list(load.samples),
        connections=share + (part < left),
        rate=None if load.rate is None else load.rate / load.processes,
        warmup_s=load.warmup_s,
        duration_s=load.duration_s,
        timeout_s=load.timeout_s,
        seed=load.seed * 1000 + part,
    )


def _write(stream: IO[bytes], content: bytes) -> None:
    """All of ``content``: one unbuffered write may take only a part."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


@contextmanager
def _generators(jobs: Sequence[Job]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes, their jobs sent; none is left when the block ends."""
    root = str(Path(__file__).resolve().parents[4])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # a message that Python had read ahead would not wake the selector
        )
        for _ in jobs
    ]
    try:
        for process, job in zip(processes, jobs, strict=True):
            assert process.stdin is not None
            with process.stdin as job_stream:
                _write(job_stream, msgspec.msgpack.encode(job))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()


def _messages(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[tuple[int, Message]]:
    """Messages as they come, until each generator has sent its `Measured`. ServingError if one ends before."""
    with selectors.DefaultSelector() as selector:
        for part, process in enumerate(processes):
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ, part)
        while selector.get_map():
            for key, _ in selector.select():
                message = read_message(cast(IO[bytes], key.fileobj))
                if message is None:
                    raise ServingError(_last_words(processes[key.data]))
                yield key.data, message
                if isinstance(message, Measured):
                    selector.unregister(key.fileobj)


def _last_words(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    lines = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"the load generator ended with status {process.wait()} and said nothing"


def _joined(load: Load, parts: Sequence[Measured]) -> Outcome:
    statuses: Counter[int] = Counter()
    failures: Counter[str] = Counter()
    for part in parts:
        statuses.update(part.statuses)
        failures.update({why: count for why, count in part.failures.items() if count})
    return Outcome(
        offered=load.rate,
        window_s=float(np.mean([part.window_s for part in parts])),
        latencies=_floats(part.latencies for part in parts),
        late=_floats(part.late for part in parts),
        statuses=dict(statuses),
        failures=dict(failures),
        answered_in_window=sum(part.answered_in_window for part in parts),
        samples_in_window=sum(part.samples_in_window for part in parts),
        generator_cores=max(part.cpu_s / part.window_s for part in parts),
    )


def _floats(contents: Iterable[bytes]) -> npt.NDArray[np.float64]:
    return np.sort(np.concatenate([np.frombuffer(content, dtype=np.float64) for content in contents]))
