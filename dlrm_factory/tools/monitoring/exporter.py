"""Text for Prometheus: what the workers counted, what it means, and TorchServe's own metrics behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from dlrm_factory.errors import ServingError
from dlrm_factory.monitoring.families import Family
from dlrm_factory.tools.bench.memory.smaps import Memory, memory_of
from dlrm_factory.tools.monitoring.label_figures import LABELS, LabelFigures, read_figures
from dlrm_factory.tools.monitoring.reading import DriftFigures, ModelReading, read_models
from dlrm_factory.tools.server import RunDir, running_server
from dlrm_factory.tools.server.management import http_client
from dlrm_factory.weights.seal import TABLE_FILE

__all__ = ["DERIVED", "DRIFT_WINDOW_S", "Exporter", "exporter_of", "read_metrics"]

DRIFT_WINDOW_S = 1800.0
_TIMEOUT_S = 2.0
# The kernel walks a worker's pages for it.
_MEMORY_EVERY_S = 15.0
_MODEL = ("model", "version")

FEATURE_PSI = "dlrm_feature_psi"
SCORE_PSI = "dlrm_score_psi"
DRIFT_SAMPLES = "dlrm_drift_window_samples"
PRIVATE_MEMORY = "dlrm_workers_private_memory_bytes"
TABLES_RESIDENT = "dlrm_tables_resident_bytes"
TABLES_SIZE = "dlrm_tables_size_bytes"

# Gauges that are made of what workers counted: name → help and labels.
DERIVED = {
    FEATURE_PSI: (
        "Population stability index of a feature in the window of drift, against training.",
        ("feature",),
    ),
    SCORE_PSI: ("Population stability index of the scores in the window of drift, against training.", ()),
    DRIFT_SAMPLES: ("Samples in the window of drift.", ()),
    PRIVATE_MEMORY: ("Memory of all workers that no other process can share, without the tables.", ()),
    TABLES_RESIDENT: (
        "Bytes of the tables in memory, as the worker that has touched most of them maps them.",
        (),
    ),
    TABLES_SIZE: ("Size of the tables' file.", ()),
    **LABELS,
}


class Exporter:
    """Exporter of one server. Each call reads the workers' files anew; nothing runs in between."""

    def __init__(
        self,
        temporary: Path | None,
        *,
        torchserve: str | None = None,
        drift_window_s: float = DRIFT_WINDOW_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the exporter of the server whose temporary folder is ``temporary``.

        Args:
            torchserve: base URL of TorchServe's own metrics, which follow ours; None leaves them out.
            drift_window_s: time whose samples are compared with training: at most an hour.
        """
        self._temporary = temporary
        self._torchserve = torchserve
        self._drift_window_s = drift_window_s
        self._clock = clock
        self._memory: tuple[float, dict[int, Memory]] = (-np.inf, {})

    def text(self) -> str:
        """Metrics in Prometheus's text format 0.0.4."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(list(self._families())))
        return generate_latest(registry).decode() + self._torchserve_text()

    def _families(self) -> Iterator[Metric]:
        models = read_models(self._temporary)
        yield from _counted(models)
        gauges = {
            name: GaugeMetricFamily(name, text, labels=[*_MODEL, *labels])
            for name, (text, labels) in DERIVED.items()
        }
        memory = self._memory_of(models)
        for model in models:
            _add_derived(gauges, model, memory, model.drift(self._drift_window_s, self._clock()))
        yield from gauges.values()

    def _memory_of(self, models: list[ModelReading]) -> dict[int, Memory]:
        now = time.monotonic()
        when, found = self._memory
        pids = {worker.head.pid for model in models for worker in model.live}
        if now - when < _MEMORY_EVERY_S and pids <= found.keys():
            return found
        found = {}
        for pid in pids:
            try:
                found[pid] = memory_of(pid, TABLE_FILE)
            except ServingError:
                continue  # it has just ended, or is not ours
        self._memory = (now, found)
        return found

    def _torchserve_text(self) -> str:
        if self._torchserve is None:
            return ""
        try:
            with http_client(self._torchserve, None, _TIMEOUT_S) as client:
                response = client.get("/metrics")
        except httpx.HTTPError:
            return ""
        return response.text if response.is_success else ""


Metric = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class _Collector(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def exporter_of(
    run_dir: Path = Path(".dlrm"), *, temporary: Path | None = None, drift_window_s: float = DRIFT_WINDOW_S
) -> Exporter:
    """Make the exporter of a server, as `read_metrics` takes them. ServingError as there."""
    if temporary is not None:
        if not temporary.is_dir():
            raise ServingError(f"{temporary}: there is no such folder; give TorchServe's java.io.tmpdir")
        return Exporter(temporary, drift_window_s=drift_window_s)
    state = running_server(run_dir)
    if state is None:
        raise ServingError(
            f"no server runs in {RunDir.at(run_dir).root}; start one with `dlrm serve`, or name its --run-dir"
        )
    return Exporter(Path(state.tmp), torchserve=state.metrics, drift_window_s=drift_window_s)


def read_metrics(
    run_dir: Path = Path(".dlrm"), *, temporary: Path | None = None, drift_window_s: float = DRIFT_WINDOW_S
) -> str:
    """Metrics of a running server in Prometheus's text format 0.0.4, as `dlrm metrics` prints them.

    Args:
        run_dir: of the server.
        temporary: temporary folder of a server that `dlrm serve` did not start, in place of ``run_dir``; TorchServe's
            own metrics are left out.
        drift_window_s: seconds whose samples are compared with training, at most an hour.

    Raises:
        ServingError: no server runs there, or there is no such folder.
    """
    return exporter_of(run_dir, temporary=temporary, drift_window_s=drift_window_s).text()


def _counted(models: list[ModelReading]) -> Iterator[Metric]:
    """Families as the workers counted them."""
    made: dict[str, Metric] = {}
    for model in models:
        for family, series in model.families().items():
            if family.name not in made:
                made[family.name] = _metric(family)
            for labels, numbers in series.items():
                _add(made[family.name], family, [model.model, model.version, *labels], numbers.tolist())
    yield from made.values()


def _metric(family: Family) -> Metric:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    made: Metric = kinds[family.kind](family.name, family.help, labels=[*_MODEL, *family.labels])
    return made


def _add(metric: Metric, family: Family, labels: list[str], numbers: list[float]) -> None:
    if isinstance(metric, HistogramMetricFamily):
        bounds = [*(f"{bound:g}" for bound in family.buckets), "+Inf"]
        cumulative = np.cumsum(numbers[:-1]).tolist()
        metric.add_metric(labels, list(zip(bounds, cumulative, strict=True)), numbers[-1])
    else:
        metric.add_metric(labels, numbers[0])


def _add_derived(
    gauges: dict[str, GaugeMetricFamily],
    model: ModelReading,
    memory: dict[int, Memory],
    drift: DriftFigures | None,
) -> None:
    names = [model.model, model.version]
    if drift is not None:
        gauges[DRIFT_SAMPLES].add_metric(names, drift.samples)
        gauges[SCORE_PSI].add_metric(names, drift.score)
        for feature, index in drift.features.items():
            gauges[FEATURE_PSI].add_metric([*names, feature], index)
    own = [memory[worker.head.pid] for worker in model.live if worker.head.pid in memory]
    if own:
        gauges[PRIVATE_MEMORY].add_metric(names, sum(each.own for each in own))
        gauges[TABLES_RESIDENT].add_metric(names, max(each.table_pages for each in own))
    size = _table_bytes(model)
    if size is not None:
        gauges[TABLES_SIZE].add_metric(names, size)
    figures: LabelFigures | None = read_figures(model.folder)
    if figures is not None:
        for name, value in figures.gauges().items():
            gauges[name].add_metric(names, value)


def _table_bytes(model: ModelReading) -> int | None:
    try:
        return (Path(model.workers[0].head.model_dir) / TABLE_FILE).stat().st_size
    except OSError:
        return None
