"""TorchServe's batch of requests → their answers, in one process, without the wire."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import FeatureBatch, SharedContext
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.requests.instrumenting import instrument
from dlrm_factory.requests.observing import EVERY_S, ServiceObserver
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.reference import make_reference
from dlrm_factory.tools.bench.http.bodies import BodyFormat, random_bodies
from dlrm_factory.tools.bench.score import RandomWeights, one_hot_batch
from dlrm_factory.weights.held_out import HeldOut
from dlrm_factory.weights.sealed import seal_weights

__all__ = ["WORK", "HandleTiming", "Work", "measure_handling"]

_REFERENCE_SAMPLES = 5000
_HEADERS = {"Host": "127.0.0.1:8080", "Content-Type": "application/json", "Content-Length": "1000"}


@dataclass(frozen=True, kw_only=True)
class Work:
    """``requests`` of ``samples`` each, in one batch."""

    requests: int
    samples: int
    body_format: BodyFormat


WORK = (
    *(
        Work(requests=n, samples=1, body_format=of)
        for n in (1, 64)
        for of in ("columns", "rows", "torchserve")
    ),
    *(Work(requests=1, samples=512, body_format=of) for of in ("columns", "rows")),
)


@dataclass(frozen=True, kw_only=True)
class HandleTiming:
    """Microseconds of the process's CPU time a request: medians.

    Fields:
        work: what was asked.
        size: bytes of a body, on average.
        total: bytes in, bytes out.
        decode: before the scorer is called.
        score: the scorer.
        encode: after it.
        json: json.loads of a body and json.dumps of its answer, and nothing else.
        slowest: the 99th percentile of ``total``.
        fast: share of the requests that the fast readers read; the reference read the others.
        metrics: of ``total``, what counting for metrics takes: a median over pairs of stretches with and without it.
    """

    work: Work
    size: float
    total: float
    decode: float
    score: float
    encode: float
    json: float
    slowest: float
    fast: float
    metrics: float


class _Watched:
    """A scorer that notes when it was called and when it was done."""

    def __init__(self, scorer: Scorer) -> None:
        self.declaration = scorer.declaration
        self._scorer = scorer
        self.called = self.done = 0.0

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> npt.NDArray[np.float32]:
        self.called = time.process_time()
        outputs = self._scorer.outputs(batch, shared)
        self.done = time.process_time()
        return outputs


def measure_handling(
    declaration: DLRMDeclaration,
    *,
    seconds: float = 2.0,
    threads: int = 1,
    compiled: bool = True,
    work: Sequence[Work] = WORK,
    observe: Callable[[str], None] = lambda _: None,
) -> list[HandleTiming]:
    """Time each kind of work for about ``seconds``, with random weights.

    DataError for a body format that the declaration's features do not have.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        observe("sealing random weights")
        seal_weights(RandomWeights(declaration), folder)
        scorer = Scorer.load(folder)
        if compiled:
            observe("compiling")
            scorer.compile(folder)
        watched = _Watched(scorer)
        service = DLRMService(watched, vocabularies=scorer.vocabularies)
        observer = instrument(
            service,
            declaration,
            files=folder,
            engine=lambda: scorer.engine,
            reference=make_reference(_random_samples(scorer), declaration),
        )
        timings = []
        for each in work:
            observe(f"{each.requests} x {each.samples}, {each.body_format}")
            timings.append(_measure(service, observer, watched, each, seconds))
        return timings


def _random_samples(scorer: Scorer) -> HeldOut:
    batch = one_hot_batch(scorer.declaration, _REFERENCE_SAMPLES)
    labels = np.zeros((len(batch), 1), dtype=np.uint8)
    return HeldOut(batch=batch, labels=labels, logits=scorer.logits(batch)[:, None])


def _measure(
    service: DLRMService, observer: ServiceObserver, watched: _Watched, work: Work, seconds: float
) -> HandleTiming:
    bodies = [
        body.content
        for body in random_bodies(watched.declaration, str(work.samples), body_format=work.body_format)
    ]
    batches = _batches([bytearray(body) for body in bodies], work.requests)
    counts = service.read_counts
    fast, reference = counts.fast, counts.reference
    taken: dict[str, list[float]] = {part: [] for part in ("total", "decode", "score", "encode", "json")}
    service.handle([Request(body, _HEADERS) for body in batches[0]])
    # As a worker does when it has loaded.
    gc.collect()
    gc.freeze()
    end = time.perf_counter() + seconds
    turn = 0
    stretches = _Stretches(service, observer)
    while time.perf_counter() < end or turn < 3:
        stretches.next_turn(turn, seconds)
        batch = batches[turn % len(batches)]
        start = time.process_time()
        answers = service.handle([Request(body, _HEADERS) for body in batch])
        stop = time.process_time()
        for answer, body in zip(answers, batch, strict=True):
            json.dumps(json.loads(answer.body), separators=(",", ":"))
            json.loads(body)
        spans = {
            "total": stop - start,
            "decode": watched.called - start,
            "score": watched.done - watched.called,
            "encode": stop - watched.done,
            "json": time.process_time() - stop,
        }
        stretches.add(stop - start)
        for part, span in spans.items():
            taken[part].append(1e6 * span / work.requests)
        turn += 1
    slowest = sorted(taken["total"])[int(0.99 * len(taken["total"]))]
    medians = {part: statistics.median(times) for part, times in taken.items()}
    service.observe(observer)
    fast, reference = counts.fast - fast, counts.reference - reference
    return HandleTiming(
        work=work,
        size=statistics.fmean(map(len, bodies)),
        slowest=slowest,
        fast=fast / (fast + reference),
        metrics=1e6 * stretches.difference() / work.requests,
        **medians,
    )


class _Stretches:
    """Pairs of stretches of turns, one that counts metrics, as a worker does, and one that does not."""

    def __init__(self, service: DLRMService, observer: ServiceObserver) -> None:
        self._service, self._observer = service, observer
        self._until = 0.0
        self._counts = False
        self._taken: dict[bool, list[float]] = {True: [], False: []}
        self._sum, self._turns = 0.0, 0

    def next_turn(self, turn: int, seconds: float) -> None:
        """Change sides when a stretch, the 16th part of ``seconds`` or half a second, is over.

        Of CPU time: a worker that has a core of its own counts once in half a second of it.
        """
        now = time.process_time()
        if turn and now < self._until:
            return
        if turn:
            self._close()
        self._until = now + min(EVERY_S, seconds / 16)
        self._counts = not self._counts
        self._service.observe(self._observer if self._counts else None)

    def add(self, taken: float) -> None:
        self._sum, self._turns = self._sum + taken, self._turns + 1

    def difference(self) -> float:
        """Seconds of CPU time a batch that counting takes; 0 where there are no pairs."""
        pairs = list(zip(self._taken[True], self._taken[False], strict=False))
        return statistics.median(one - other for one, other in pairs) if pairs else 0.0

    def _close(self) -> None:
        start = time.process_time()
        if self._counts:
            self._observer.flush()  # the worker's thread does it
        self._taken[self._counts].append((self._sum + time.process_time() - start) / max(self._turns, 1))
        self._sum, self._turns = 0.0, 0


def _batches(bodies: Sequence[bytearray], size: int) -> list[list[bytearray]]:
    return [list(bodies[i : i + size]) for i in range(0, len(bodies) - size + 1, size)]
