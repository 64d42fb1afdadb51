"""One rank of this host, a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dlrm_factory.host.process import process_state

__all__ = ["RankProcess"]


class RankProcess:
    """A process that has imported torch, or is about to, and waits for its place in a group.

    It runs the archive's code, as the leader does, and ends with the thread that makes it.
    """

    def __init__(self, folder: Path) -> None:
        """``folder``: of the unpacked archive."""
        self.number = -1
        self._made = time.monotonic()
        self._folder = folder
        self._stopped_since: float | None = None
        command = [sys.executable, "-W", "ignore::FutureWarning", "-m", "dlrm_factory.ranks.remote"]
        # torch warns of each host whose address has no name.
        defaults = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        environment = {**defaults, **os.environ, "PYTHONPATH": _python_path(folder)}
        self._process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE)

    @property
    def age_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._made

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, number: int, local: int, start: dict[str, Any], **where: Any) -> None:
        """Let the rank take its place: ``number`` of all, ``local`` of this host. ``start``: what the leader said.

        OSError if the process has ended.
        """
        self.number = number
        environment = {
            "RANK": number,
            "WORLD_SIZE": start["world_size"],
            "LOCAL_RANK": local,
            "LOCAL_WORLD_SIZE": start["ranks"],
        }
        place = {
            "environment": environment,
            "folder": str(self._folder),
            "store_port": start["store_port"],
            **where,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(place).encode() + b"\n")
        self._process.stdin.flush()

    def fault(self, still_s: float) -> str:
        """What is wrong with the rank: it has ended, or stands still for ``still_s`` seconds; empty if nothing is."""
        status = self._process.poll()
        if status is not None:
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            return f"rank {self.number} ended {how}"
        now = time.monotonic()
        if process_state(self.pid) != "T":
            self._stopped_since = None
            return ""
        self._stopped_since = self._stopped_since or now
        return f"rank {self.number} stands still" if now - self._stopped_since >= still_s else ""

    def lives(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once, and wait until it has."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _python_path(folder: Path) -> str:
    """The archive's code before any other copy of it."""
    before = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(folder), *(entry for entry in before.split(os.pathsep) if entry)])
