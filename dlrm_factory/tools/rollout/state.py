"""Files of rollouts in a run directory: what is so now, for clients and the next command, and what has been.

::

    .dlrm/
    ├── rollout.json     by model: its canary, versions that are kept, the rollout that runs
    └── rollouts.jsonl   one line a rollout or roll-back; stays when the server ends
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import psutil
from filelock import FileLock, Timeout

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import RunDir

__all__ = [
    "CanaryShare",
    "KeptVersion",
    "ModelRollouts",
    "RolloutFile",
    "RunningRollout",
    "add_history",
    "history_entry",
    "read_history",
]


class CanaryShare(msgspec.Struct, frozen=True, kw_only=True):
    """Version that clients ask for a ``share`` of their keys, from 0 to 1."""

    version: str
    share: float


class KeptVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Version that is no longer the default, and is removed at ``until``, in seconds since the epoch.

    ``going``: its removal has begun, so nobody goes back to it.
    """

    version: str
    until: float
    going: bool = False


class RunningRollout(msgspec.Struct, frozen=True, kw_only=True):
    """Rollout that process ``pid``, started at ``started`` seconds since the epoch, does with ``version``."""

    pid: int
    started: float
    version: str

    @classmethod
    def own(cls, version: str) -> RunningRollout:
        return cls(pid=os.getpid(), started=psutil.Process().create_time(), version=version)

    def lives(self) -> bool:
        """Return True unless the process has ended."""
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 1.0)
        except psutil.Error:
            return False


class ModelRollouts(msgspec.Struct, frozen=True, kw_only=True):
    """State of one model.

    Fields:
        canary: None if there is none.
        kept: latest first; the first is what a roll-back goes back to, unless it is going.
        running: None if no rollout runs.
        folders: version → folder that it was unpacked into.
    """

    canary: CanaryShare | None = None
    kept: tuple[KeptVersion, ...] = ()
    running: RunningRollout | None = None
    folders: dict[str, str] = {}


class RolloutFile:
    """The state of all models of a server."""

    def __init__(self, run_dir: RunDir) -> None:
        self._path = run_dir.rollout_file
        self._lock = FileLock(run_dir.root / ".rollout.lock")
        self._removal_lock = FileLock(run_dir.root / ".removal.lock")

    @contextlib.contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold the file against every other rollout and roll-back. ServingError if one of them runs for so long."""
        with _acquired(self._lock, timeout, "a rollout, or a roll-back,"):
            yield

    @contextlib.contextmanager
    def no_removal(self, timeout: float) -> Iterator[None]:
        """Hold off removals of kept versions; one takes long. To be entered before `held`, by whoever needs both.

        ServingError if one is under way, or a rollout, for so long.
        """
        with _acquired(self._removal_lock, timeout, "the removal of a version, or a rollout,"):
            yield

    def models(self) -> dict[str, ModelRollouts]:
        """State by model; empty where there is none, or none that can be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, ModelRollouts])
        except (OSError, msgspec.DecodeError):
            return {}

    def model(self, name: str) -> ModelRollouts:
        return self.models().get(name, ModelRollouts())

    def change(self, name: str, **changes: Any) -> ModelRollouts:
        """Write fields of the model ``name``, and return its new state. For whoever holds the file."""
        models = self.models()
        models[name] = msgspec.structs.replace(models.get(name, ModelRollouts()), **changes)
        # Renamed into place, so that nobody reads half of it.
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(models), indent=2) + b"\n")
        partial.replace(self._path)
        return models[name]


@contextlib.contextmanager
def _acquired(lock: FileLock, timeout: float, what: str) -> Iterator[None]:
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise ServingError(f"{what} is under way in this run directory; try again when it is over") from None
    try:
        yield
    finally:
        lock.release()


def add_history(run_dir: RunDir, entry: dict[str, Any]) -> None:
    """Add one line to the history."""
    with run_dir.rollout_history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def history_entry(
    model: str, old: str, new: str, outcome: str, start: float, **others: Any
) -> dict[str, Any]:
    """Make a line of the history. ``start``: of the rollout, by `time.monotonic`."""
    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": model,
        "from": old,
        "to": new,
        "outcome": outcome,
        "seconds": round(time.monotonic() - start, 2),
        **others,
    }


def read_history(path: Path) -> list[dict[str, Any]]:
    """Entries of the run directory at ``path``, the oldest first; a line that is no JSON object is left out."""
    try:
        lines = RunDir.at(path).rollout_history.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                entries.append(found)
    return entries
