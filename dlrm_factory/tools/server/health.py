"""Readiness of a server: true once every model has its least number of workers, and until the server drains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from dlrm_factory.errors import ArchiveError, ServingError
from dlrm_factory.tools.archive.model_config import min_workers_of
from dlrm_factory.tools.server.management import ManagementClient, ModelVersion, management_client
from dlrm_factory.tools.server.processes import is_running
from dlrm_factory.tools.server.rundir import RunDir, ServerState

__all__ = ["Health", "ModelHealth", "check_health", "health_of"]

_ANSWER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ModelHealth:
    """Default version of a model: its ready workers, and how many there must be at least."""

    model: str
    version: str
    ready: int
    needed: int


@dataclass(frozen=True, kw_only=True)
class Health:
    """Readiness of a server.

    Args:
        live: the server's process is there.
        ready: requests may be sent to it.
        reason: why not; empty if ready.
        models: as far as they are known.
    """

    live: bool
    ready: bool
    reason: str
    models: tuple[ModelHealth, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        models = {
            each.model: {"version": each.version, "ready_workers": each.ready, "needed": each.needed}
            for each in self.models
        }
        return {"ready": self.ready, "reason": self.reason, "models": models}


def health_of(path: Path) -> Health:
    """Readiness of the server of the run directory at ``path``. Nothing is raised for a server that is not well."""
    run_dir = RunDir.at(path)
    state = run_dir.read_state()
    if state is None or not is_running(state):
        return Health(live=False, ready=False, reason=f"no server runs in {run_dir.root}")
    with management_client(run_dir, state, timeout=_ANSWER_S) as client:
        return check_health(run_dir, state, client)


def check_health(run_dir: RunDir, state: ServerState, client: ManagementClient) -> Health:
    """Readiness of a server that runs; ``client`` is of its management API."""
    if run_dir.draining_file.exists():
        return Health(live=True, ready=False, reason="the server is being stopped: it drains")
    try:
        names = client.models()
        missing = [name for name in state.models if name not in names]
        models = tuple(_model_health(client.describe(name), Path(state.model_store)) for name in names)
    except ServingError as error:
        return Health(live=True, ready=False, reason=f"the server starts, or hangs: {error}")
    short = [each for each in models if each.ready < each.needed]
    reasons = [f'model "{name}" is not registered yet' for name in missing]
    reasons += [
        f'model "{each.model}" {each.version}: {each.ready} of {each.needed} workers have loaded and replayed their '
        "golden requests"
        for each in short
    ]
    if not models:
        reasons.append("no model is registered")
    return Health(live=True, ready=not reasons, reason="; ".join(reasons), models=models)


def _model_health(found: ModelVersion, store: Path) -> ModelHealth:
    ready = sum(worker.ready and _lives(worker.pid) for worker in found.workers)
    least = _least(store / found.location)
    # Who scaled below the archive's number, but for none at all, meant it.
    needed = max(min(least, found.wanted), min(least, 1))
    return ModelHealth(model=found.model, version=found.version, ready=ready, needed=needed)


@lru_cache(maxsize=256)
def _least(archive: Path) -> int:
    try:
        return min_workers_of(archive)
    except (ArchiveError, OSError):
        return 1


def _lives(pid: int) -> bool:
    """Return True unless the worker's process has ended, which TorchServe may not have noticed."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
