"""Memory of the workers of a server of its own, at several numbers of workers."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ConfigError, ServingError
from dlrm_factory.model.dtypes import row_bytes
from dlrm_factory.tools.bench.http.bodies import Body, http_requests, sample_counts
from dlrm_factory.tools.bench.http.driving import Load, drive
from dlrm_factory.tools.bench.http.server import authorization
from dlrm_factory.tools.bench.memory.loading import Loading, measure_loading
from dlrm_factory.tools.bench.memory.smaps import Memory, imports_alone, mapped_file, memory_of
from dlrm_factory.tools.bench.random_archive import table_bytes
from dlrm_factory.tools.server import (
    LogMarks,
    RunningServer,
    ServeOptions,
    find_endpoint,
    management_client,
    scale_model,
    start_server,
    stop_server,
)
from dlrm_factory.tools.server.readiness import worker_lines
from dlrm_factory.weights.seal import TABLE_FILE

__all__ = [
    "MemoryReport",
    "ScaledMemory",
    "WorkerMemory",
    "measure_memory",
    "touching_bodies",
]

_PAGE = 4096


def touching_bodies(declaration: DLRMDeclaration) -> list[Body]:
    """Bodies that look up one row of each page of each table, with nothing else in them.

    Bodies hold 100 to 700 samples: a worker that sees batches of one size alone needs less memory.
    """
    columns = {f.name: _rows_of_pages(declaration, f.table) for f in declaration.sparse_features}
    hidden = [feature.name for feature in declaration.sparse_features if feature.ids != "index"]
    if hidden:
        raise ConfigError(
            [
                f'"{hidden[0]}" does not take rows as ids, so its pages cannot be named; use an archive with ids: index'
            ]
        )
    samples = max(len(rows) for rows in columns.values())
    sizes = itertools.cycle(sample_counts("mlperf", np.random.default_rng(0)))
    bodies, start = [], 0
    while start < samples:
        bodies.append(_body(columns, start, next(sizes)))
        start += bodies[-1].samples
    return bodies


def _rows_of_pages(declaration: DLRMDeclaration, table: str) -> list[int]:
    found = declaration.table(table)
    step = max(1, _PAGE // row_bytes(found.dtype, found.embedding_dim))
    return [*range(0, found.num_embeddings, step), found.num_embeddings - 1]


def _body(columns: dict[str, list[int]], start: int, size: int) -> Body:
    # Small tables end early and begin again.
    inputs: dict[str, Any] = {
        name: np.take(rows, np.arange(start, start + size), mode="wrap").tolist()
        for name, rows in columns.items()
    }
    return Body(content=json.dumps({"inputs": inputs}).encode(), samples=size)


MODEL = "dlrm"
# Each further worker may take this share of the tables, beyond what its imports take.
ALLOWED_SHARE = 0.05

_PORTS = ("inference_address", "management_address", "metrics_address", "grpc_inference_port")
_LOADED = re.compile(r"Loaded the model in .* in (?P<seconds>[\d.]+) s")
_TOUCHED = 0.98  # of the table file's pages; the last page of a table may hold no whole row
_ROUND_S = 1.0
_MAX_ROUNDS = 30


@dataclass(frozen=True, kw_only=True)
class WorkerMemory:
    """One worker after requests that touched every page of the tables."""

    pid: int
    memory: Memory


@dataclass(frozen=True, kw_only=True)
class ScaledMemory:
    """The workers at one scale.

    Fields:
        ready_s: from the call that scaled to the last worker ready; for the first scale from the server's start.
        loaded_s: what each new worker said of its own load, without imports.
        imports: a process that has only imported the handler, beside these workers.
        touched: whether every worker has every page of the tables mapped.
    """

    workers: tuple[WorkerMemory, ...]
    ready_s: float
    loaded_s: tuple[float, ...]
    imports: Memory
    touched: bool

    def as_dict(self) -> dict[str, Any]:
        """Encode for JSON."""
        return {
            "workers": [{"pid": worker.pid, "memory": worker.memory.as_dict()} for worker in self.workers],
            "ready_s": self.ready_s,
            "loaded_s": self.loaded_s,
            "imports": self.imports.as_dict(),
            "touched": self.touched,
        }


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """All scales, and how long the tables take to load."""

    table_bytes: int
    scales: tuple[ScaledMemory, ...]
    loading: Loading

    @property
    def allowed(self) -> int:
        """Bytes a further worker may take for itself: imports, and 5 % of the tables."""
        return int(self.scales[-1].imports.own + ALLOWED_SHARE * self.table_bytes)

    @property
    def heaviest(self) -> int:
        """Bytes of its own that the heaviest worker of the last scale takes."""
        return max(worker.memory.own for worker in self.scales[-1].workers)

    @property
    def holds(self) -> bool:
        """True if each worker stays within `allowed`."""
        return self.heaviest <= self.allowed

    def as_dict(self) -> dict[str, Any]:
        """Encode for JSON."""
        return {
            "table_bytes": self.table_bytes,
            "scales": [scale.as_dict() for scale in self.scales],
            "loading": asdict(self.loading),
            "allowed_bytes": self.allowed,
            "heaviest_bytes": self.heaviest,
            "holds": self.holds,
            "load_over_read": self.loading.ratio,
        }


def measure_memory(
    archive: Path,
    declaration: DLRMDeclaration,
    scales: Sequence[int],
    *,
    run_dir: Path,
    tell: Callable[[str], None] = lambda _: None,
) -> MemoryReport:
    """Serve ``archive`` with as many workers as each of ``scales`` says, touch every page, read /proc.

    Raises:
        ServingError: the server does not start, or a worker dies.
        ConfigError: the model's ids are not rows.
    """
    bodies = touching_bodies(declaration)
    tell("starting TorchServe")
    with _serving(archive, run_dir, scales[0]) as (server, ready_s):
        folder: Path | None = None
        found: list[ScaledMemory] = []
        for count in scales:
            tell(f"{count} workers: loading")
            if count != scales[0]:
                ready_s, loaded_s = _scale(server, count)
            else:
                loaded_s = _loaded(server.run_dir.model_log.read_text(encoding="utf-8", errors="replace"))
            folder = folder or _archive_folder(server)
            tell(f"{count} workers: requests that touch every page")
            touched = _touch(server, bodies, _file_bytes(folder))
            tell(f"{count} workers: reading /proc")
            with imports_alone(folder) as imports:
                workers = tuple(
                    WorkerMemory(pid=pid, memory=memory_of(pid, TABLE_FILE)) for pid in _pids(server)
                )
            found.append(
                ScaledMemory(
                    imports=imports, workers=workers, ready_s=ready_s, loaded_s=loaded_s, touched=touched
                )
            )
        assert folder is not None
        tell("timing the load")
        loading = measure_loading(folder)
    return MemoryReport(table_bytes=table_bytes(declaration), scales=tuple(found), loading=loading)


@contextmanager
def _serving(archive: Path, run_dir: Path, workers: int) -> Iterator[tuple[RunningServer, float]]:
    options = ServeOptions(
        model_store=archive.parent,
        models=(f"{MODEL}={archive.name}",),
        run_dir=run_dir,
        ports=dict.fromkeys([*_PORTS, "grpc_management_port"], 0),
        workers=workers,
    )
    started = time.monotonic()
    server = start_server(options)
    try:
        yield server, time.monotonic() - started
    finally:
        stop_server(run_dir)


def _scale(server: RunningServer, workers: int) -> tuple[float, tuple[float, ...]]:
    marks = LogMarks.now(server.run_dir)
    with management_client(server.run_dir, server.state) as client:
        scaled = scale_model(client, MODEL, workers, marks=marks)
    return scaled.seconds, _loaded(marks.since(server.run_dir.model_log))


def _loaded(model_log: str) -> tuple[float, ...]:
    found = (_LOADED.search(line) for line in worker_lines(model_log, MODEL))
    return tuple(float(match["seconds"]) for match in found if match)


def _pids(server: RunningServer) -> list[int]:
    with management_client(server.run_dir, server.state) as client:
        return sorted(worker.pid for worker in client.workers(MODEL))


def _archive_folder(server: RunningServer) -> Path:
    """Folder in which the archive lies unpacked."""
    table_file = mapped_file(_pids(server)[0], TABLE_FILE)
    if table_file is None:
        raise ServingError(f"the worker maps no {TABLE_FILE}; was the archive made by `dlrm archive`?")
    return table_file.parent


def _file_bytes(folder: Path) -> int:
    return (folder / TABLE_FILE).stat().st_size


def _touch(server: RunningServer, bodies: Sequence[Body], table_file_bytes: int) -> bool:
    """Send ``bodies`` until every worker has the whole table file mapped; whether it came to that.

    TorchServe hands a request to whichever worker is free, so each body is sent again and again.
    """
    endpoint = find_endpoint("inference", run_dir=server.run_dir.root, url=None, token=None)
    pids = _pids(server)
    load = Load(
        url=endpoint.url,
        requests=http_requests(bodies, url=endpoint.url, model=MODEL, authorization=authorization(endpoint)),
        samples=[body.samples for body in bodies],
        connections=3 * len(pids),
        warmup_s=0.0,
        duration_s=_ROUND_S,
    )
    for _ in range(_MAX_ROUNDS):
        outcome = drive(load)
        if outcome.failed:
            raise ServingError(f"requests failed: {outcome.statuses} {outcome.failures}")
        if all(memory_of(pid, TABLE_FILE).table_pages >= _TOUCHED * table_file_bytes for pid in pids):
            return True
    return False
