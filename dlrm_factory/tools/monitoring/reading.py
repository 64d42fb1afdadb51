"""Files of all workers of a server → numbers of each model version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm_factory.host.worker_file import files_of_workers
from dlrm_factory.monitoring.families import Family
from dlrm_factory.monitoring.metrics_file import SUFFIX, FamilyPlace, WorkerReading, read_metrics_file
from dlrm_factory.monitoring.stability import psi

__all__ = ["DriftFigures", "ModelReading", "quantile", "read_models"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DriftFigures:
    """Population stability indices of a window against training.

    Fields:
        samples: in the window.
        score: of the scores.
        features: by feature, in declared order.
    """

    samples: float
    score: float
    features: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ModelReading:
    """Metrics of one version of a model at one moment.

    Fields:
        workers: all that have loaded it, also those that have ended: what they counted stays counted.
        folder: of their files.
    """

    model: str
    version: str
    workers: Sequence[WorkerReading]
    folder: Path

    @property
    def live(self) -> list[WorkerReading]:
        """Workers that run."""
        return [worker for worker in self.workers if worker.lives()]

    def families(self) -> dict[Family, dict[tuple[str, ...], Float64]]:
        """Numbers [width] by family and label values."""
        found: dict[Family, dict[tuple[str, ...], list[Float64]]] = {}
        live = {id(worker) for worker in self.live}
        for worker in self.workers:
            for place in worker.head.families:
                if place.family.live and id(worker) not in live:
                    continue
                _gather(found.setdefault(place.family, {}), place, worker)
        return {
            family: {labels: _merge(family, numbers) for labels, numbers in series.items()}
            for family, series in found.items()
        }

    def numbers(self, family: Family) -> dict[tuple[str, ...], Float64]:
        """Numbers [width] of one family by label values; empty if no worker has it."""
        return next((series for each, series in self.families().items() if each.name == family.name), {})

    def drift(self, window_seconds: float, now: float | None = None) -> DriftFigures | None:
        """Drift of the last ``window_seconds``; None where the archive has no reference."""
        heads = [worker.head.drift for worker in self.workers if worker.head.drift is not None]
        if not heads:
            return None
        parts = heads[-1].parts
        windows = [
            worker.drift_window(window_seconds, now)
            for worker in self.workers
            if worker.head.drift is not None and worker.head.drift.parts == parts
        ]
        counts, at = np.sum([counts for _, counts in windows], axis=0), 0
        score, features = 0.0, {}
        for part in parts:
            index = psi(counts[at : at + len(part.shares)], part.shares)
            at += len(part.shares)
            if part.kind == "score":
                score = index
            else:
                features[part.feature] = index
        return DriftFigures(samples=sum(samples for samples, _ in windows), score=score, features=features)


def read_models(temporary: Path | None) -> list[ModelReading]:
    """Metrics of the server whose temporary folder is ``temporary``, by model and version.

    Versions that TorchServe has removed are left out.
    """
    folders: dict[Path, list[WorkerReading]] = {}
    for path in files_of_workers(SUFFIX, temporary):
        try:
            folders.setdefault(path.parent, []).append(read_metrics_file(path))
        except (OSError, ValueError):
            continue  # of a worker that has just begun, or of another version of this project
    found = [
        ModelReading(
            model=workers[0].head.model, version=workers[0].head.version, workers=workers, folder=folder
        )
        for folder, workers in folders.items()
        if Path(workers[0].head.model_dir).exists() or any(worker.lives() for worker in workers)
    ]
    return _joined(sorted(found, key=lambda each: (each.model, each.version)))


def _joined(models: Iterable[ModelReading]) -> list[ModelReading]:
    """One reading a model and version: a version that was registered again counts on."""
    joined: dict[tuple[str, str], ModelReading] = {}
    for each in models:
        key = each.model, each.version
        before = joined.get(key)
        if before is not None:
            newer = each if each.live else before
            workers = [*before.workers, *each.workers]
            each = ModelReading(model=each.model, version=each.version, workers=workers, folder=newer.folder)
        joined[key] = each
    return list(joined.values())


def _gather(series: dict[tuple[str, ...], list[Float64]], place: FamilyPlace, worker: WorkerReading) -> None:
    for labels, numbers in zip(place.series, worker.family(place), strict=True):
        series.setdefault(tuple(labels), []).append(numbers)


def _merge(family: Family, numbers: Sequence[Float64]) -> Float64:
    stacked = np.stack(numbers)
    if family.kind == "gauge" and family.merge != "sum":
        return stacked.max(axis=0) if family.merge == "max" else stacked.min(axis=0)
    return stacked.sum(axis=0)


def quantile(share: float, numbers: Float64, buckets: Sequence[float]) -> float | None:
    """The ``share``-quantile of a histogram's ``numbers`` [width], as Prometheus estimates it; None if empty."""
    counts = numbers[:-1]
    total = counts.sum()
    if total <= 0:
        return None
    rank, cumulative = share * total, np.cumsum(counts)
    at = int(np.searchsorted(cumulative, rank))
    if at >= len(buckets):
        return float(buckets[-1])
    low = buckets[at - 1] if at else 0.0
    before = cumulative[at - 1] if at else 0.0
    return float(low + (buckets[at] - low) * (rank - before) / max(counts[at], 1e-12))
