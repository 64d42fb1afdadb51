"""Counts of what the service answers, for metrics: noted beside the batch, counted later by a thread of its own.

A batch of one request takes some 150 µs, so what is done for each batch is to keep a few numbers and references. Every
half second the thread counts what was kept, with NumPy, into the worker's file.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, Substitutions
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.monitoring.drift import DriftCounter, Observed
from dlrm_factory.monitoring.families import (
    BATCH_REQUESTS,
    BATCH_SAMPLES,
    BATCH_SECONDS,
    CODES,
    COUNTED_AT,
    ENGINES,
    MISSING,
    READS,
    REQUESTS,
    SAMPLES,
    SCORES,
    STAGE_SECONDS,
    TRUNCATED,
    UNKNOWN_IDS,
    WORKERS,
    Family,
)
from dlrm_factory.monitoring.metrics_file import MetricsFile
from dlrm_factory.monitoring.score_log import ScoreLog
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.formats import DecodedRequest
from dlrm_factory.requests.formats.fast import Gathered, ReadCounts
from dlrm_factory.requests.formats.outputs import Scores
from dlrm_factory.requests.request import Request

__all__ = ["EVERY_S", "ServiceObserver"]

logger = logging.getLogger(__name__)

EVERY_S = 0.5
# Bounds on what is kept between two counts.
MAX_SAMPLES_FOR_DRIFT = 64
MAX_SCORES_COUNTED = 8192
_FEW = 8
_ID, _SHAPE = attrgetter("id"), attrgetter("shape")
_ROOM_OF_ONE = 4  # one sample taken out of many costs more than its share

Read = Sequence[tuple[Sequence[int], DecodedRequest | Gathered]]
Scored = Sequence[Scores | Answer]
Times = tuple[float, float, float, float]
Float32 = npt.NDArray[np.float32]


class _Pending:
    """Notes on batches that are yet to be counted.

    Fields:
        numbers: of each batch its times (before it, once it was read, once scored, once its answers were written, in
            seconds), its requests and its samples.
        logits: of its samples.
        observed: samples for the window of drift, of the first batches.
        named: request ids with the logits of their samples.
        substitutions: that batches tell of.
        lengths: int32 [F, B] of small batches, whose empty bags are to be counted.
        empty: empty bags of larger ones, float32 [F].
    """

    __slots__ = ("empty", "lengths", "logits", "named", "numbers", "observed", "substitutions")

    def __init__(self) -> None:
        self.numbers = array("d")
        self.logits: list[Float32] = []
        self.observed: list[Observed] = []
        self.named: list[tuple[str, Float32]] = []
        self.substitutions: list[Substitutions] = []
        self.lengths: list[npt.NDArray[np.int32]] = []
        self.empty: list[Float32] = []


class ServiceObserver:
    """Observer of one service. It never raises: a fault of its own is logged once and ends the counting.

    Scores are those of the first probability, of requests that ask for it.
    """

    def __init__(
        self,
        file: MetricsFile,
        declaration: DLRMDeclaration,
        *,
        reads: ReadCounts,
        engine: Callable[[], str],
        drift: DriftCounter | None = None,
        scores: ScoreLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Count what comes from now on.

        Args:
            file: of this worker.
            reads: requests by reader, counted since the worker started.
            engine: tells the engine that scores now.
            drift: counts samples into the bins of the reference; None without one.
            scores: keeps scores of requests with an id; None keeps none.
        """
        self._file, self._reads, self._engine, self._drift, self._scores = file, reads, engine, drift, scores
        self._clock = clock
        self._pending = _Pending()
        self._room = MAX_SAMPLES_FOR_DRIFT
        self._requests: dict[tuple[str, int], int] = {}  # by shape and status
        self._samples: dict[str, int] = {}  # by shape
        self._failed = False
        self._dense = len(declaration.dense_features)
        self._first = next((output.name for output in declaration.probabilities), "")
        # By place of the feature; exact, so that rare ones are not lost.
        self._missing = np.zeros(self._dense + len(declaration.sparse_features), dtype=np.int64)
        self._unknown, self._truncated = (
            np.zeros(len(declaration.sparse_features), dtype=np.int64) for _ in "ab"
        )
        names = declaration.sparse_names
        self._unknown_at, self._truncated_at = (
            [names.index(feature) for (feature,) in _series(file, family)]
            for family in (UNKNOWN_IDS, TRUNCATED)
        )
        self._reads_before = _read_numbers(reads, _series(file, READS))
        self._requests_at = {labels: i for i, labels in enumerate(_series(file, REQUESTS))}
        self._samples_at = {shape: i for i, (shape,) in enumerate(_series(file, SAMPLES))}
        self._noting, self._counting = threading.Lock(), threading.Lock()
        self._stopped = threading.Event()
        self.flush()

    def observe(
        self,
        requests: Sequence[Request],
        read: Read,
        scored: Scored,
        answers: Sequence[Answer],
        times: Times,
    ) -> None:
        """Note a batch: its requests, their samples and scores, and one answer a request."""
        if self._failed:
            return
        try:
            with self._noting:
                # A worker of profile `latency` has batches of one request: each microsecond shows.
                if len(answers) == 1 and read:
                    samples = self._note_lone(read[0][1], scored[0], answers[0].status)
                else:
                    samples = self._note(read, scored, answers)
                self._pending.numbers.extend((*times, len(answers), samples))
                if self._scores is not None and any(map(_ID, requests)):
                    self._pending.named += _named(requests, read, scored, self._first)
        except Exception:
            self._fail()

    def flush(self) -> None:
        """Count all that was noted."""
        if self._failed:
            return
        try:
            with self._counting:
                self._count()
        except Exception:
            self._fail()

    def start(self, every_s: float = EVERY_S) -> None:
        """Let a thread flush every ``every_s`` seconds."""

        def run() -> None:
            while not self._stopped.wait(every_s):
                self.flush()

        threading.Thread(target=run, daemon=True, name="metrics").start()

    def stop(self) -> None:
        """End the thread, and count what is left."""
        self._stopped.set()
        self.flush()

    def _note_lone(self, each: DecodedRequest | Gathered, found: Scores | Answer, status: int) -> int:
        """Note the one request of a batch; return its samples."""
        batch = each.batch
        samples = len(batch.dense)
        shape = each.samples[0].shape if isinstance(each, Gathered) else each.shape
        key = shape, status
        self._requests[key] = self._requests.get(key, 0) + 1
        self._samples[shape] = self._samples.get(shape, 0) + samples
        if batch.substitutions is not None or not batch.one_each:
            self._note_features(batch, each.context)
        if type(found) is Scores and self._first in found.logits:
            self._pending.logits.append(found.logits[self._first])
            if self._room > 0:
                self._note_observed(each, found)
        return samples

    def _note(self, read: Read, scored: Scored, answers: Sequence[Answer]) -> int:
        """Note the requests of a batch; return their samples."""
        samples = noted = 0
        for (places, each), found in zip(read, scored, strict=True):
            size, batch = len(places), each.batch
            shapes = list(map(_SHAPE, each.samples)) if isinstance(each, Gathered) else [each.shape]
            count = len(batch.dense)
            samples += count
            # Where all scores are finite, answers are written together or fail together.
            plain = isinstance(found, Scores) and found.finite is None and answers[places[0]].status == 200
            if plain and shapes.count(shapes[0]) == size:
                key = shapes[0], 200
                self._requests[key] = self._requests.get(key, 0) + size
                self._samples[shapes[0]] = self._samples.get(shapes[0], 0) + count
                noted += size
            else:
                noted += self._note_each(places, shapes, answers, count)
            if batch.substitutions is not None or not batch.one_each:
                self._note_features(batch, each.context)
            if type(found) is Scores and self._first in found.logits:
                self._pending.logits.append(found.logits[self._first])
                if self._room > 0:
                    self._note_observed(each, found)
        if noted != len(answers):
            self._note_unread(read, answers)
        return samples

    def _note_observed(self, each: DecodedRequest | Gathered, found: Scores) -> None:
        if found.finite is None:
            apart = isinstance(each, Gathered) or (len(each.batch) == 1 and each.context is None)
            self._room -= len(each.batch) if apart else _ROOM_OF_ONE
            logits = found.logits[self._first]
            self._pending.observed.append(Observed(each.batch, each.context, logits, apart))

    def _note_each(
        self, places: Sequence[int], shapes: Sequence[str], answers: Sequence[Answer], samples: int
    ) -> int:
        for place, shape in zip(places, shapes, strict=True):
            key = shape, answers[place].status
            self._requests[key] = self._requests.get(key, 0) + 1
            self._samples[shape] = self._samples.get(shape, 0) + samples // len(places)
        return len(places)

    def _note_unread(self, read: Read, answers: Sequence[Answer]) -> None:
        taken = {place for places, _ in read for place in places}
        for place, answer in enumerate(answers):
            if place not in taken:
                key = "unread", answer.status
                self._requests[key] = self._requests.get(key, 0) + 1

    def _note_features(self, batch: FeatureBatch, context: FeatureBatch | None) -> None:
        told: Substitutions | None = batch.substitutions
        if told is not None:
            self._pending.substitutions.append(told)
        if batch.one_each:
            return
        lengths = batch.lengths
        if context is None and lengths.shape[1] <= _FEW:
            self._pending.lengths.append(lengths)  # small: counted later, many at once
            return
        # A product of float32, exact for so few, takes half as long as a sum of bools.
        empty = (lengths == 0).astype(np.float32) @ np.ones(lengths.shape[1], dtype=np.float32)
        if context is not None:
            empty[context.lengths[:, 0] > 0] = 0
        self._pending.empty.append(empty)

    def _count_features(self, pending: _Pending) -> None:
        told = pending.substitutions
        self._missing[: self._dense] += _sum([each.missing for each in told if each.missing is not None])
        self._unknown += _sum([each.unknown_ids for each in told if each.unknown_ids is not None])
        self._truncated += _sum([each.truncated_bags for each in told if each.truncated_bags is not None])
        self._missing[self._dense :] += _sum(pending.empty)
        if pending.lengths:
            self._missing[self._dense :] += (np.concatenate(pending.lengths, axis=1) == 0).sum(axis=1)
        self._set(MISSING, self._missing)
        self._set(UNKNOWN_IDS, self._unknown[self._unknown_at])
        self._set(TRUNCATED, self._truncated[self._truncated_at])

    def _count(self) -> None:
        with self._noting:
            pending, self._pending = self._pending, _Pending()
            now = self._clock()
            self._room = 0 if self._drift is None else MAX_SAMPLES_FOR_DRIFT
            requests, samples = dict(self._requests), dict(self._samples)
        for (shape, status), count in requests.items():
            code = str(status)
            at = self._requests_at[shape, code if code in CODES else "500"]
            self._file.numbers(REQUESTS)[at, 0] = count
        for shape, count in samples.items():
            self._file.numbers(SAMPLES)[self._samples_at[shape], 0] = count
        self._count_features(pending)
        reads = _read_numbers(self._reads, _series(self._file, READS))
        self._set(READS, reads - self._reads_before)
        self._set(COUNTED_AT, np.array([now]))
        engine = self._engine()
        self._set(WORKERS, np.array([engine == each for each in ENGINES]))
        if not pending.numbers:
            return
        numbers = np.frombuffer(pending.numbers).reshape(-1, 6)
        for row, taken in zip(self._file.numbers(STAGE_SECONDS), np.diff(numbers[:, :4]).T, strict=True):
            _add_to_histogram(row, taken, STAGE_SECONDS)
        _add_to_histogram(self._file.numbers(BATCH_SECONDS)[0], numbers[:, 3] - numbers[:, 0], BATCH_SECONDS)
        _add_to_histogram(self._file.numbers(BATCH_REQUESTS)[0], numbers[:, 4], BATCH_REQUESTS)
        _add_to_histogram(self._file.numbers(BATCH_SAMPLES)[0], numbers[:, 5], BATCH_SAMPLES)
        self._count_scores(pending.logits)
        if self._drift is not None:
            self._drift.count(pending.observed, now)
        if self._scores is not None:
            for name, logits in pending.named:
                self._scores.write(name, logits, now)

    def _count_scores(self, logits: Sequence[Float32]) -> None:
        total = sum(map(len, logits))
        if not total:
            return
        every = -(-total // MAX_SCORES_COUNTED)
        taken = np.concatenate(logits)[::every].astype(np.float64)
        with np.errstate(over="ignore"):
            chances = 1 / (1 + np.exp(-taken[np.isfinite(taken)]))
        _add_to_histogram(self._file.numbers(SCORES)[0], chances, SCORES)

    def _set(self, family: Family, totals: npt.NDArray[Any]) -> None:
        self._file.numbers(family)[:, 0] = totals

    def _fail(self) -> None:
        self._failed = True
        logger.exception("Metrics of this worker are no longer counted, through a fault of ours")


def _series(file: MetricsFile, family: Family) -> Sequence[tuple[str, ...]]:
    return next(place.series for place in file.head.families if place.family == family)


def _read_numbers(reads: ReadCounts, series: Sequence[tuple[str, ...]]) -> npt.NDArray[np.int64]:
    outcomes = {"read": reads.taken, "left": reads.left, "failed": reads.failed}
    return np.array(
        [
            reads.reference if reader == "reference" else outcomes[outcome][reader]
            for reader, outcome in series
        ],
        dtype=np.int64,
    )


def _sum(counts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64] | int:
    return np.sum(counts, axis=0, dtype=np.int64) if counts else 0


def _named(requests: Sequence[Request], read: Read, scored: Scored, first: str) -> list[tuple[str, Float32]]:
    """Request ids with the logits of the output ``first``."""
    named = []
    for (places, each), found in zip(read, scored, strict=True):
        if isinstance(found, Answer) or first not in found.logits:
            continue
        logits = found.logits[first]
        one_each = isinstance(each, Gathered)
        for i, place in enumerate(places):
            name = requests[place].id
            if name:
                named.append((name, logits[i : i + 1] if one_each else logits))
    return named


def _add_to_histogram(row: npt.NDArray[np.float64], values: npt.NDArray[np.float64], family: Family) -> None:
    bounds = np.array(family.buckets)
    row[:-1] += np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)
    row[-1] += values.sum()
