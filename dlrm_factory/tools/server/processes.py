"""The processes of one server: the Java process, its workers, and the ranks that torchrun starts for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

from dlrm_factory.tools.server.rundir import RunDir, ServerState

__all__ = ["MARK", "is_running", "server_processes", "stop_processes"]

# Set for the Java process and so for all it starts: orphans are found by it when their parent is gone.
MARK = "DLRM_SERVER_RUN_DIR"

_JAVA_GRACE_S = 30.0
_WORKER_GRACE_S = 3.0


def is_running(state: ServerState) -> bool:
    """Whether the Java process of ``state`` is alive; a zombie or a reused pid is not."""
    try:
        process = psutil.Process(state.pid)
        same = abs(process.create_time() - state.started) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def server_processes(run_dir: RunDir) -> list[psutil.Process]:
    """Every living process that a server of ``run_dir`` started, the Java process first."""
    found = [p for p in psutil.process_iter() if p.pid != os.getpid() and _belongs(p, str(run_dir.root))]
    return sorted(found, key=lambda process: (not _is_java(process), process.pid))


def stop_processes(run_dir: RunDir) -> int:
    """Ends every process of the server, gently first, and returns how many there were.

    The Java process ends its own workers; what still lives then (workers of a killed server, ranks stuck in a
    collective) is ended here.
    """
    processes = server_processes(run_dir)
    java = [process for process in processes if _is_java(process)]
    _signal(java, psutil.Process.terminate)
    _wait(java, _JAVA_GRACE_S)
    _signal(java, psutil.Process.kill)
    _wait(java, _WORKER_GRACE_S)
    left = server_processes(run_dir)
    _signal(left, psutil.Process.terminate)
    _wait(left, _WORKER_GRACE_S)
    # Looked up anew: a worker may have started another process meanwhile.
    left = server_processes(run_dir)
    _signal(left, psutil.Process.kill)
    _wait(left, _WORKER_GRACE_S)
    return len(processes)


def _belongs(process: psutil.Process, root: str) -> bool:
    try:
        return process.environ().get(MARK) == root and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _is_java(process: psutil.Process) -> bool:
    try:
        return "org.pytorch.serve.ModelServer" in process.cmdline()
    except psutil.Error:
        return False


def _signal(processes: list[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                send(process)
        except psutil.Error:
            continue


def _wait(processes: list[psutil.Process], seconds: float) -> None:
    """Waits until all are gone. A zombie counts as gone: where nobody reaps orphans, it would never go."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(_lives(process) for process in processes):
        time.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
