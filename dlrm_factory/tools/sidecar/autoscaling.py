"""Workers by queue time: more when requests wait, fewer when they do not, with hysteresis."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout import RolloutFile
from dlrm_factory.tools.server import (
    ManagementClient,
    ModelVersion,
    RunDir,
    ServerState,
    core_oversubscription,
    management_client,
    running_server,
    scale_workers,
)
from dlrm_factory.tools.server.management import http_client
from dlrm_factory.tools.server.processes import launch_sidecar

__all__ = [
    "AutoscaleSettings",
    "Autoscaler",
    "Policy",
    "QueueTimes",
    "autoscale_model",
    "read_settings",
    "write_settings",
]

logger = logging.getLogger(__name__)

_QUEUE, _REQUESTS = "ts_queue_latency_microseconds", "ts_inference_requests_total"
_SAMPLE = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# Below this part of the wanted queue time there is room for one worker less.
_LOW = 0.25
# After a worker that did not come up: whatever ails it is not mended by trying at once.
_PAUSE_S = 300.0
_ANSWER_S = 5.0
Sample = tuple[float, float]  # microseconds that requests waited, and requests


class AutoscaleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one model.

    Fields:
        min_workers, max_workers: bounds of the workers.
        queue_ms: mean queue time above which there are too few.
        up_after_s, down_after_s: seconds for which the queue time is above it, or below a quarter of it, before a
            worker is added, or taken away.
        every_s: seconds between two looks, over which the queue time is the mean.
    """

    min_workers: int
    max_workers: int
    queue_ms: float = 5.0
    up_after_s: float = 10.0
    down_after_s: float = 120.0
    every_s: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_workers <= self.max_workers:
            raise ServingError(
                f"autoscaling from {self.min_workers} to {self.max_workers} workers: give 1 ≤ the fewest ≤ the most"
            )
        if self.queue_ms <= 0:
            raise ServingError(f"a queue time of {self.queue_ms:g} ms: give more than 0")


def read_settings(run_dir: RunDir) -> dict[str, AutoscaleSettings]:
    """Settings by model; none where there are none, or none that can be read."""
    try:
        return msgspec.json.decode(run_dir.autoscale_file.read_bytes(), type=dict[str, AutoscaleSettings])
    except (OSError, msgspec.DecodeError, ServingError):
        return {}


def write_settings(run_dir: RunDir, model: str, settings: AutoscaleSettings | None) -> None:
    """Let the process beside the server scale ``model`` from now on; None for no longer."""
    found = read_settings(run_dir)
    found.pop(model, None)
    if settings is not None:
        found[model] = settings
    partial = run_dir.autoscale_file.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    partial.replace(run_dir.autoscale_file)


def autoscale_model(
    settings: AutoscaleSettings | None, *, model: str = "dlrm", run_dir: Path = Path(".dlrm")
) -> str | None:
    """Let the workers of a model of a running server follow its queue time, as `dlrm autoscale` does.

    Args:
        settings: bounds and times; None to scale no longer.
        model: its name.
        run_dir: of the server.

    Returns:
        A warning if the most workers have more threads than there are cores; None if they do not.

    Raises:
        ServingError: no such server or model.
    """
    directory, state = RunDir.at(run_dir), running_server(run_dir)
    if state is None:
        raise ServingError(
            f"no server runs in {directory.root}; start one with `dlrm serve`, or give --run-dir"
        )
    with management_client(directory, state) as client:
        archive = Path(state.model_store) / client.archive(model)
    write_settings(directory, model, settings)
    if settings is None:
        return None
    launch_sidecar(directory)
    return core_oversubscription(archive, settings.max_workers)


class Policy:
    """Decides from queue times how many workers there should be."""

    def __init__(self, settings: AutoscaleSettings) -> None:
        self._settings = settings
        self._since: dict[int, float] = {}

    def wanted(self, now: float, workers: int, queue_ms: float | None, waiting: int) -> int:
        """Workers that there should be: as many as there are, or one more or less.

        Args:
            now: seconds of any clock.
            workers: that there are.
            queue_ms: mean of the requests answered since the last look; None if none was.
            waiting: requests in the queue now.
        """
        settings = self._settings
        if not settings.min_workers <= workers <= settings.max_workers:
            self._since.clear()
            return min(max(workers, settings.min_workers), settings.max_workers)
        step = self._step(queue_ms, waiting)
        self._since = {step: self._since.get(step, now)} if step else {}
        after = settings.up_after_s if step > 0 else settings.down_after_s
        wanted = min(max(workers + step, settings.min_workers), settings.max_workers)
        if wanted == workers or now - self._since[step] < after:
            return workers
        self._since.clear()
        return wanted

    def _step(self, queue_ms: float | None, waiting: int) -> int:
        if queue_ms is None:
            # Nobody was answered: nobody asked, or all wait.
            return 1 if waiting else -1
        if queue_ms > self._settings.queue_ms:
            return 1
        return -1 if queue_ms < _LOW * self._settings.queue_ms and not waiting else 0


class QueueTimes:
    """Mean queue times of models between two looks at TorchServe's metrics."""

    def __init__(self) -> None:
        self._last: dict[str, Sample] = {}

    def mean_ms(self, text: str, model: str, version: str) -> float | None:
        """Mean of the requests to the default version ``version`` since the last look; None if there were none.

        ``text``: of the metrics, as Prometheus reads them.
        """
        sums = {_QUEUE: 0.0, _REQUESTS: 0.0}
        for name, labels, value in _SAMPLE.findall(text):
            found = dict(_LABEL.findall(labels))
            if (
                name in sums
                and found.get("model_name") == model
                and found.get("model_version") in ("default", version)
            ):
                sums[name] += float(value)
        now = (sums[_QUEUE], sums[_REQUESTS])
        before = self._last.get(model, now)
        self._last[model] = now
        requests = now[1] - before[1]
        return (now[0] - before[0]) / requests / 1000 if requests > 0 else None

    def forget(self, model: str) -> None:
        """Begin anew with the next look."""
        self._last.pop(model, None)


class Autoscaler:
    """Scales the models of a server that have settings."""

    def __init__(
        self,
        run_dir: RunDir,
        state: ServerState,
        client: ManagementClient,
        *,
        scale: Callable[..., object] = scale_workers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir, self._state, self._client = run_dir, state, client
        self._scale, self._clock = scale, clock
        self._http = http_client(state.metrics, None, _ANSWER_S)
        self._policies: dict[str, tuple[AutoscaleSettings, Policy]] = {}
        self._times = QueueTimes()
        self._due: dict[str, float] = {}
        self._seen: dict[str, tuple[int, float | None]] = {}
        self._changes: dict[tuple[str, str], int] = {}

    def work(self) -> None:
        """Look at each model whose time has come, and scale it if need be. ServingError if the server hangs."""
        settings = read_settings(self._run_dir)
        self._policies = {name: each for name, each in self._policies.items() if name in settings}
        self._seen = {name: each for name, each in self._seen.items() if name in settings}
        now = self._clock()
        due = {name: each for name, each in settings.items() if now >= self._due.get(name, 0.0)}
        if not due:
            return
        text = self._metrics()
        for model, each in due.items():
            self._due[model] = now + each.every_s
            self._look(model, each, text)

    def metrics(self) -> str:
        """Text of Prometheus."""
        lines = []
        for name, kind, text, samples in (
            (
                "dlrm_autoscale_workers",
                "gauge",
                "Workers of a model that is scaled by queue time.",
                self._workers(),
            ),
            (
                "dlrm_autoscale_queue_seconds",
                "gauge",
                "Mean queue time of the requests answered between the last two looks.",
                self._queues(),
            ),
            (
                "dlrm_autoscale_changes_total",
                "counter",
                "Workers that were added (up) or taken away (down), and those that did not come up (failed).",
                {
                    f'model="{model}",direction="{way}"': count
                    for (model, way), count in self._changes.items()
                },
            ),
        ):
            if samples:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{{{labels}}} {value:g}" for labels, value in samples.items()]
        return "".join(f"{line}\n" for line in lines)

    def _workers(self) -> dict[str, float]:
        return {f'model="{model}"': workers for model, (workers, _) in self._seen.items()}

    def _queues(self) -> dict[str, float]:
        return {f'model="{model}"': ms / 1000 for model, (_, ms) in self._seen.items() if ms is not None}

    def _metrics(self) -> str:
        try:
            response = self._http.get("/metrics")
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise ServingError(f"{self._state.metrics}/metrics does not answer: {error}") from None
        return response.text

    def _look(self, model: str, settings: AutoscaleSettings, text: str) -> None:
        found = self._client.describe(model)
        queue_ms = self._times.mean_ms(text, model, found.version)
        self._seen[model] = (found.ready, queue_ms)
        if _rolls_out(self._run_dir, model):
            return
        known = self._policies.get(model)
        if known is None or known[0] != settings:
            known = self._policies[model] = (settings, Policy(settings))
        wanted = known[1].wanted(self._clock(), found.wanted, queue_ms, found.waiting)
        if wanted != found.wanted:
            self._change(found, wanted, queue_ms)

    def _change(self, found: ModelVersion, wanted: int, queue_ms: float | None) -> None:
        model, before = found.model, found.wanted
        shown = "no request was answered" if queue_ms is None else f"{queue_ms:.2f} ms"
        logger.info("Autoscaling %s: %d → %d workers (queue time %s)", model, before, wanted, shown)
        try:
            self._scale(wanted, model=model, run_dir=self._run_dir.root)
        except ServingError as error:
            logger.error("Autoscaling %s: back to %d workers: %s", model, before, error)
            self._count(model, "failed")
            self._due[model] = self._clock() + _PAUSE_S
            with contextlib.suppress(ServingError):
                self._client.scale(model, before)
            return
        self._count(model, "up" if wanted > before else "down")
        self._seen[model] = (wanted, queue_ms)
        # What was answered meanwhile says nothing of the workers that there are now.
        self._times.forget(model)

    def _count(self, model: str, way: str) -> None:
        self._changes[model, way] = self._changes.get((model, way), 0) + 1


def _rolls_out(run_dir: RunDir, model: str) -> bool:
    running = RolloutFile(run_dir).model(model).running
    return running is not None and running.lives()
