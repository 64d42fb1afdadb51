"""State of a running server at a glance: workers, rates, latency, memory, drift, labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import ServingError
from dlrm_factory.monitoring.families import (
    ARCHIVE_CREATED,
    BATCH_REQUESTS,
    BATCH_SECONDS,
    COUNTED_AT,
    DRIFT_REFERENCE,
    GOLDENS,
    REQUESTS,
    SAMPLES,
    SCORES,
    STAGE_SECONDS,
    STAGES,
    WORKERS,
    Family,
)
from dlrm_factory.tools.bench.memory.smaps import memory_of
from dlrm_factory.tools.monitoring.exporter import DRIFT_WINDOW_S
from dlrm_factory.tools.monitoring.label_figures import read_figures
from dlrm_factory.tools.monitoring.reading import ModelReading, quantile, read_models
from dlrm_factory.tools.server import ModelVersion, RunDir, ServerState, management_client, running_server
from dlrm_factory.weights.seal import TABLE_FILE

__all__ = [
    "DRIFT_ALARM",
    "DRIFT_WARNING",
    "MIN_DRIFT_SAMPLES",
    "Status",
    "StatusReader",
    "VersionStatus",
    "read_status",
    "worst_features",
]

# As the alert rules have them.
DRIFT_WARNING, DRIFT_ALARM = 0.1, 0.2
MIN_DRIFT_SAMPLES = 1000

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DriftStatus:
    """Drift of a window: population stability indices; ``samples`` in the window, which is ``window_s`` long."""

    window_s: float
    samples: int
    score: float
    features: dict[str, float]

    @property
    def enough(self) -> bool:
        """True if there are so many samples that chance alone does not alarm."""
        return self.samples >= MIN_DRIFT_SAMPLES

    def over(self, bound: float) -> list[str]:
        """Features, and the scores as ``scores``, over ``bound``, the largest first; none without enough samples."""
        if not self.enough:
            return []
        found = {"scores": self.score, **self.features}
        return sorted((name for name in found if found[name] > bound), key=lambda name: -found[name])


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Work in an interval, or since the workers started.

    Fields:
        requests, samples, errors: a second; errors are answers of status 400 and more.
        batch_requests: requests in a batch, on average; None without one.
        p50_s, p99_s: seconds that a worker takes for a batch; None without one.
        stages: seconds of each stage, on average.
    """

    requests: float = 0.0
    samples: float = 0.0
    errors: float = 0.0
    batch_requests: float | None = None
    p50_s: float | None = None
    p99_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """State of one version of a model.

    Fields:
        default: it answers requests that name no version.
        workers, wanted: ready workers, and those that TorchServe keeps running.
        engines: workers by engine.
        waiting: requests in the queue.
        rates: in the interval that the status looked at.
        requests, errors: since the workers started.
        mean_score: of these.
        score_counts, latency_counts: of all, in the buckets of the metrics; not cumulative, the last above all.
        private_bytes, tables_resident_bytes, tables_bytes: memory of the workers, and of the tables.
        goldens: that every worker reproduced.
        archive_created: seconds since the epoch; None if not known.
        reference_samples: held-out samples of the archive's reference of drift; 0 if it has none, None if not known.
        drift: None where the archive has no reference.
        labels: figures of the latest labels.
    """

    model: str
    version: str
    default: bool
    workers: int
    wanted: int
    engines: dict[str, int]
    waiting: int
    rates: Rates
    requests: int
    errors: int
    mean_score: float | None
    score_counts: list[float]
    latency_counts: list[float]
    private_bytes: int
    tables_resident_bytes: int
    tables_bytes: int
    goldens: int
    archive_created: float | None
    reference_samples: int | None
    drift: DriftStatus | None
    labels: dict[str, float | int | None] | None

    @property
    def ok(self) -> bool:
        """True if all workers are there and nothing drifts."""
        return self.workers >= self.wanted > 0 and not (self.drift and self.drift.over(DRIFT_ALARM))


@dataclass(frozen=True, kw_only=True)
class Status:
    """State of a server at the time ``when``, seconds since the epoch, over the last ``interval_s``."""

    when: float
    interval_s: float
    pid: int
    up_s: float
    inference: str
    metrics: str
    run_dir: str
    models: list[VersionStatus]

    def as_dict(self) -> dict[str, Any]:
        """Encode for JSON."""
        return asdict(self)


class StatusReader:
    """Reads a server's status again and again; rates are those since the reading before."""

    def __init__(self, run_dir: RunDir, *, clock: Callable[[], float] = time.time) -> None:
        """ServingError if no server runs there."""
        self._run_dir, self._clock = run_dir, clock
        self._state = _running(run_dir)
        self._before = read_models(Path(self._state.tmp))
        self._when = clock()

    def read(self) -> Status:
        """The status now. ServingError if the server has ended or is too busy to answer."""
        self._state = _running(self._run_dir)
        with management_client(self._run_dir, self._state) as client:
            names = client.models()
            versions = [each for name in names for each in client.versions(name)]
            defaults = {(name, client.describe(name).version) for name in names}
        now, found = self._clock(), read_models(Path(self._state.tmp))
        readings = {(each.model, each.version): each for each in found}
        before = {(each.model, each.version): each for each in self._before}
        models = []
        for version in versions:
            key = version.model, version.version
            models.append(
                _version_status(
                    version, key in defaults, readings.get(key), before.get(key), now - self._when, now
                )
            )
        interval, self._before, self._when = now - self._when, found, now
        return Status(
            when=now,
            interval_s=interval,
            pid=self._state.pid,
            up_s=now - self._state.started,
            inference=self._state.inference,
            metrics=self._state.metrics,
            run_dir=str(self._run_dir.root),
            models=models,
        )


def read_status(
    run_dir: Path = Path(".dlrm"), interval_s: float = 2.0, *, pause: Callable[[float], None] = time.sleep
) -> Status:
    """Look at a running server for a while, as `dlrm status` does.

    Args:
        run_dir: of the server.
        interval_s: seconds that rates are taken over.
        pause: waits for so long.

    Returns:
        Workers, rates, latency, memory, drift and labels of each model version; `Status.as_dict` for JSON.

    Raises:
        ServingError: no server runs there, or it is too busy to answer.
    """
    reader = StatusReader(RunDir.at(run_dir))
    pause(interval_s)
    return reader.read()


def _running(run_dir: RunDir) -> ServerState:
    state = running_server(run_dir.root)
    if state is None:
        raise ServingError(
            f"no server runs in {run_dir.root}; start one with `dlrm serve`, or name its --run-dir"
        )
    return state


def _version_status(
    version: ModelVersion,
    default: bool,
    now: ModelReading | None,
    before: ModelReading | None,
    interval_s: float,
    when: float,
) -> VersionStatus:
    memory, tables = _memory(now)
    requests, errors = _requests(now)
    scores = _histogram(now, SCORES)
    engines = {} if now is None else {labels[0]: int(n[0]) for labels, n in now.numbers(WORKERS).items()}
    created, goldens = _fact(now, ARCHIVE_CREATED), _fact(now, GOLDENS)
    reference = _fact(now, DRIFT_REFERENCE)
    return VersionStatus(
        model=version.model,
        version=version.version,
        default=default,
        workers=version.ready,
        wanted=version.wanted,
        engines=engines,
        waiting=version.waiting,
        rates=Rates() if now is None else _rates(now, before, interval_s),
        requests=int(requests),
        errors=int(errors),
        mean_score=float(scores[-1] / scores[:-1].sum()) if scores[:-1].sum() else None,
        score_counts=scores[:-1].tolist(),
        latency_counts=_histogram(now, BATCH_SECONDS)[:-1].tolist(),
        private_bytes=memory,
        tables_resident_bytes=tables,
        tables_bytes=_table_bytes(now),
        goldens=int(goldens or 0),
        archive_created=created or None,
        reference_samples=None if reference is None else int(reference),
        drift=_drift(now, when),
        labels=_labels(now),
    )


def _rates(now: ModelReading, before: ModelReading | None, interval_s: float) -> Rates:
    """Rates of all workers, each over the time between its own two counts."""
    earlier = {} if before is None else {each.head.pid: each for each in before.workers}
    requests = samples = errors = 0.0
    for worker in now.live:
        one = ModelReading(model=now.model, version=now.version, workers=[worker], folder=now.folder)
        then = earlier.get(worker.head.pid)
        old = None if then is None else ModelReading(model="", version="", workers=[then], folder=now.folder)
        start = None if old is None else _fact(old, COUNTED_AT)
        end = _fact(one, COUNTED_AT)
        span = end - start if start is not None and end is not None and end > start else interval_s
        done, wrong = (a - b for a, b in zip(_requests(one), _requests(old), strict=True))
        requests += done / span
        errors += wrong / span
        samples += (_total(one, SAMPLES) - _total(old, SAMPLES)) / span
    batches = _histogram(now, BATCH_REQUESTS) - _histogram(before, BATCH_REQUESTS)
    latency = _histogram(now, BATCH_SECONDS) - _histogram(before, BATCH_SECONDS)
    count = latency[:-1].sum()
    stages = {}
    for stage in STAGES:
        parts = _histogram(now, STAGE_SECONDS, stage) - _histogram(before, STAGE_SECONDS, stage)
        if count > 0:
            stages[stage] = float(parts[-1] / count)
    return Rates(
        requests=max(requests, 0.0),
        samples=max(samples, 0.0),
        errors=max(errors, 0.0),
        batch_requests=float(batches[-1] / count) if count > 0 else None,
        p50_s=quantile(0.5, latency, BATCH_SECONDS.buckets),
        p99_s=quantile(0.99, latency, BATCH_SECONDS.buckets),
        stages=stages,
    )


def _requests(reading: ModelReading | None) -> tuple[float, float]:
    """All requests, and those answered with an error."""
    series = {} if reading is None else reading.numbers(REQUESTS)
    total = sum(float(numbers[0]) for numbers in series.values())
    return total, total - sum(float(n[0]) for labels, n in series.items() if labels[1] == "200")


def _total(reading: ModelReading | None, family: Family) -> float:
    return 0.0 if reading is None else sum(float(n[0]) for n in reading.numbers(family).values())


def _histogram(reading: ModelReading | None, family: Family, *labels: str) -> Float64:
    found = None if reading is None else reading.numbers(family).get(labels)
    return np.zeros(family.width) if found is None else found


def _fact(reading: ModelReading | None, family: Family) -> float | None:
    found = None if reading is None else reading.numbers(family).get(())
    return None if found is None else float(found[0])


def _memory(reading: ModelReading | None) -> tuple[int, int]:
    own = tables = 0
    for worker in [] if reading is None else reading.live:
        try:
            memory = memory_of(worker.head.pid, TABLE_FILE)
        except ServingError:
            continue  # it has just ended
        own, tables = own + memory.own, max(tables, memory.table_pages)
    return own, tables


def _table_bytes(reading: ModelReading | None) -> int:
    try:
        return (
            0 if reading is None else (Path(reading.workers[-1].head.model_dir) / TABLE_FILE).stat().st_size
        )
    except OSError:
        return 0


def _drift(reading: ModelReading | None, when: float) -> DriftStatus | None:
    found = None if reading is None else reading.drift(DRIFT_WINDOW_S, when)
    if found is None:
        return None
    return DriftStatus(
        window_s=DRIFT_WINDOW_S, samples=int(found.samples), score=found.score, features=dict(found.features)
    )


def _labels(reading: ModelReading | None) -> dict[str, float | int | None] | None:
    figures = None if reading is None else read_figures(reading.folder)
    if figures is None:
        return None
    return {
        "joined": figures.joined,
        "mean_label": figures.label_sum / figures.joined,
        "calibration": figures.calibration,
        "normalized_entropy": figures.normalized_entropy,
        "when": figures.when,
    }


def worst_features(drift: DriftStatus, count: int) -> Sequence[tuple[str, float]]:
    """The ``count`` features that drift most, with their indices."""
    return sorted(drift.features.items(), key=lambda each: -each[1])[:count]
