"""A version taken away from a running server, without a request to it that is never answered."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from dlrm_factory.errors import ServingError
from dlrm_factory.host.worker_file import WorkerFile, parking_path
from dlrm_factory.tools.server import ManagementClient, ModelVersion
from dlrm_factory.tools.server.draining import wait_for_quiet, worker_files
from dlrm_factory.tools.server.processes import MARK
from dlrm_factory.weights.seal import MANIFEST

__all__ = ["FOLDER", "processes_of", "remove_version"]

FOLDER = "rollout-"  # start of the name of a folder that a rollout has made
# A batch that is begun is answered, and what waits; then it is turned away.
_ANSWER_S = 30.0
_QUIET_S = 2.0
# A thread of TorchServe that found the queue open may be kept waiting for the processor before it queues its request.
_SETTLE_S = 1.0
# Threads of workers that never load: TorchServe ends the last ones first, and needs milliseconds for each.
_LAST_WORKERS = 2
_STARTED_S = 2.0
_ENDED_S = 5.0
_KILLED_S = 1.0
# For TorchServe to end workers that it knows.
_ENDS_ITSELF_S = 3.0
# TorchServe starts a worker again after some seconds, and each imports torch.
_STAND_IN_S = 90.0
_TURNS_AWAY = Path(__file__).with_name("turning_away.py")
_POLL_S = 0.02
_GUARD = "guard_process.py"


def remove_version(
    client: ManagementClient, model: str, version: str, *, temporary: Path, folder: Path | None
) -> None:
    """Take a version away that is not the default. Whoever still asks for it gets a 503, then a 404.

    TorchServe never answers what it has taken for a worker that it ends. So it first takes no more, then all that had
    come is answered, and then the workers are ended, of which TorchServe knows no more.

    Args:
        client: of the server's management API.
        temporary: the server's temporary folder.
        folder: that the version was unpacked into, to be removed; None for none.
    """
    found = _find(client, model, version)
    if found is not None and folder is not None and not found.ready and not _is_closed(found):
        found = _with_stand_in(client, found, folder, temporary)
    folders = set() if folder is None else {str(folder.resolve())}
    if found is not None:
        folders |= _folders_of(found)
        pids = [worker.pid for worker in found.workers]
        if _is_closed(found):
            # Its removal was interrupted: TorchServe has forgotten its workers.
            pids = [process.pid for process in _processes_in(folders, temporary)]
        with worker_files(pids, temporary) as files:
            retires = _can_retire(found, files, temporary)
            if retires:
                client.close_queue(found.model, found.version, len(found.workers))
            if retires or (files and _is_closed(found)):
                _retire(client, found, files, folders, temporary)
            else:
                _end(client, found, files)
    if folder is not None:
        _end_processes({str(folder.resolve())}, temporary, _ENDS_ITSELF_S)
        if folder.name.startswith(FOLDER):
            shutil.rmtree(folder, ignore_errors=True)


def processes_of(found: ModelVersion, temporary: Path) -> Iterator[psutil.Process]:
    """All processes of the workers, ranks too, but their guards: those in the folder that TorchServe starts them in.

    Args:
        found: the version.
        temporary: the server's temporary folder.
    """
    yield from _processes_in(_folders_of(found), temporary)


def _folders_of(found: ModelVersion) -> set[str]:
    folders = set()
    for worker in found.workers:
        # TorchServe says -1 until a worker has told its own.
        if worker.pid > 0:
            with contextlib.suppress(psutil.Error):
                folders.add(psutil.Process(worker.pid).cwd())
    return folders


def _processes_in(folders: set[str], temporary: Path) -> Iterator[psutil.Process]:
    """The server's own processes in those of ``folders`` that are of its models, but guards."""
    root = temporary.resolve()
    models = {each for each in folders if root in Path(each).parents or (Path(each) / MANIFEST).is_file()}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd() in models and _is_worker(process, root):
                yield process


def _is_worker(process: psutil.Process, root: Path) -> bool:
    """True for what TorchServe has started with the temporary folder ``root``, and not an operator's shell, say."""
    environment = process.environ()
    return (
        process.uids().real == os.getuid()
        and MARK in environment
        and Path(environment.get("TMPDIR", "")).resolve() == root
        and not any(_GUARD in word for word in process.cmdline())
    )


def _end_processes(folders: set[str], temporary: Path, grace_s: float = 0.0) -> None:
    """End the workers in ``folders``, those too that TorchServe starts meanwhile, after ``grace_s`` seconds.

    Their guards park their connections.
    """
    start = time.monotonic()
    while processes := list(_processes_in(folders, temporary)):
        now = time.monotonic() - start
        if now >= grace_s + _ENDED_S:
            return
        if now >= grace_s:
            with worker_files([each.pid for each in processes], temporary) as files:
                for file in files:
                    file.retired = True
            _kill(processes)
        time.sleep(_POLL_S)


def _kill(processes: Sequence[psutil.Process]) -> None:
    # What started the others first: torchrun starts a rank anew that ends.
    for process in sorted(processes, key=_age_key):
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=_KILLED_S)


def _age_key(process: psutil.Process) -> tuple[float, int]:
    try:
        return process.create_time(), process.pid
    except psutil.Error:
        return 0.0, process.pid


def _is_closed(found: ModelVersion) -> bool:
    """True if the version has no worker and wants none: its queue was closed, or it has never been brought."""
    return not found.workers and not found.wanted


def _find(client: ManagementClient, model: str, version: str) -> ModelVersion | None:
    return next((each for each in client.versions(model) if each.version == version), None)


def _with_stand_in(
    client: ManagementClient, found: ModelVersion, folder: Path, temporary: Path
) -> ModelVersion | None:
    """The version with a worker that turns away what waits for those that have not come up; as it is if nothing does.

    TorchServe never answers what waits in the queue of a version without a worker, and starts failed workers again.
    """
    if not folder.name.startswith(FOLDER) or not client.describe(found.model, found.version).waiting:
        return found
    try:
        handler = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["model"]["handler"]
        partial = folder / ".handler.partial"
        shutil.copyfile(_TURNS_AWAY, partial)
        partial.replace(folder / Path(handler).name)
    except (OSError, ValueError, LookupError, TypeError):
        return found
    _kill(list(_processes_in({str(folder.resolve())}, temporary)))
    end = time.monotonic() + _STAND_IN_S
    now: ModelVersion | None = found
    while now is not None and not now.ready and time.monotonic() < end:
        time.sleep(_POLL_S)
        now = _find(client, found.model, found.version)
    return now


def _can_retire(found: ModelVersion, files: Sequence[WorkerFile], temporary: Path) -> bool:
    """True if all workers are ready, and the process beside the server takes their connections."""
    all_ready = 0 < len(found.workers) == found.ready == len(files)
    return all_ready and all(file.parks for file in files) and _somebody_parks(temporary)


def _somebody_parks(temporary: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there, contextlib.suppress(OSError):
        there.connect(str(parking_path(temporary)))
        return True
    return False


def _retire(
    client: ManagementClient,
    found: ModelVersion,
    files: Sequence[WorkerFile],
    folders: set[str],
    temporary: Path,
) -> None:
    """Let the workers of a version whose queue is closed answer what they have, and end them when nothing can come.

    What a worker does not answer in time, its guard does.
    """
    try:
        # A server that does not say what waits is not asked again: the workers go all the same.
        with contextlib.suppress(ServingError):
            if not wait_for_quiet(client, [found], files, _ANSWER_S, settle_s=_SETTLE_S):
                _turn_away(client, found, files)
    finally:
        try:
            client.unregister(found.model, found.version)
        finally:
            for file in files:
                file.retired = True
            _end_processes(folders, temporary)


def _end(client: ManagementClient, found: ModelVersion, files: Sequence[WorkerFile]) -> None:
    """Let TorchServe end the workers, after milliseconds in which the last one answers what had come.

    For workers that are not ready, and those of archives made before connections were parked.
    """
    _turn_away(client, found, files)
    if found.ready:
        _start_last_workers(client, found.model, found.version, len(found.workers) + _LAST_WORKERS)
    client.unregister(found.model, found.version)


def _turn_away(client: ManagementClient, found: ModelVersion, files: Sequence[WorkerFile]) -> None:
    for file in files:
        file.turns_away = True
    wait_for_quiet(client, [found], files, _QUIET_S)


def _start_last_workers(client: ManagementClient, model: str, version: str, workers: int) -> None:
    client.scale(model, workers, version)
    end = time.monotonic() + _STARTED_S
    while time.monotonic() < end:
        there = client.workers(model, version)
        if len(there) >= workers and all(worker.pid > 0 for worker in there):
            return
        time.sleep(_POLL_S)
