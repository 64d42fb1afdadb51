"""A version of a model: brought to a running server, and taken away, without a request that is lost."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ArchiveError, ServingError, WeightsError
from dlrm_factory.tools.archive.listing import read_text
from dlrm_factory.tools.archive.model_config import group_of
from dlrm_factory.tools.archive.reading import read_archive_declaration, unpack_archive
from dlrm_factory.tools.server import LogMarks, ManagementClient, Progress, RunDir, ServerState
from dlrm_factory.tools.server.draining import wait_for_quiet, worker_files
from dlrm_factory.tools.server.readiness import wait_for_workers
from dlrm_factory.tools.server.settings import load_properties
from dlrm_factory.tools.server.store import ServedModel, find_models
from dlrm_factory.weights.seal import MANIFEST

__all__ = ["NewVersion", "bring_version", "open_version", "remove_version"]

_FOLDER = "rollout-"
# Clients that ask for a version by its name may go on; they get 503, then 404.
_QUIET_S = 2.0
# Threads of workers that never load: TorchServe ends the last ones first, and needs milliseconds for each.
_LAST_WORKERS = 2
_STARTED_S = 2.0
_POLL_S = 0.02


class NewVersion:
    """An archive to roll out, checked as far as can be without a server."""

    def __init__(self, archive: ServedModel, version: str, declaration: DLRMDeclaration) -> None:
        self.path, self.version, self.declaration = archive.path, version, declaration


def open_version(archive: Path, model: str, state: ServerState) -> NewVersion:
    """The archive at ``archive``, a path or a name in the server's model store. ServingError if it cannot be served."""
    store = Path(state.model_store)
    # Archives from anywhere: what is unpacked here is given to TorchServe as a folder.
    there = archive if archive.exists() or not (store / archive).exists() else store / archive
    (found,) = find_models(there.parent if there.is_file() else store, [f"{model}={there.absolute()}"])
    try:
        manifest = json.loads(read_text(found.path, MANIFEST))
        version = str(manifest["model"]["modelVersion"])
        return NewVersion(found, version, read_archive_declaration(found.path))
    except (ArchiveError, ValueError, KeyError, TypeError) as error:
        raise ServingError(f"{archive} cannot be rolled out: {error}") from None


def bring_version(
    client: ManagementClient,
    new: NewVersion,
    *,
    model: str,
    workers: int,
    run_dir: RunDir,
    folder: Path,
    deadline: float,
    tell: Callable[[Progress], None],
) -> None:
    """Return once ``workers`` workers of the version are ready: each has replayed its golden requests.

    TorchServe unpacks an archive in a thread that serves requests, so it is unpacked here, into ``folder``.

    ServingError if it cannot be, or a worker does not come up by ``deadline`` (`time.monotonic`).
    """
    marks = LogMarks.now(run_dir)
    try:
        folder.mkdir(parents=True)
        unpack_archive(new.path, folder, remedy="make room there")
    except (ArchiveError, WeightsError, OSError) as error:
        raise ServingError(str(error)) from None
    client.register(model, str(folder))
    if client.wanted_workers(model, new.version) != workers:
        client.scale(model, workers, new.version)
    wait_for_workers(client, model, workers, marks=marks, deadline=deadline, tell=tell, version=new.version)


def remove_version(
    client: ManagementClient, model: str, version: str, *, temporary: Path, folder: Path | None
) -> None:
    """Take a version away that is not the default. Whoever still asks for it gets a 503, then a 404.

    TorchServe never answers what it has taken for a worker that it ends. So its workers first turn requests away, and
    when few come, or none, they end one after the other, the last one after all that had come has been answered.

    Args:
        client: of the server's management API.
        temporary: the server's temporary folder.
        folder: that the version was unpacked into, to be removed; None for none.
    """
    found = next((each for each in client.versions(model) if each.version == version), None)
    if found is not None:
        with worker_files([worker.pid for worker in found.workers], temporary) as files:
            for file in files:
                file.turns_away = True
            wait_for_quiet(client, [found], files, _QUIET_S)
            if found.ready:
                _start_last_workers(client, model, version, len(found.workers) + _LAST_WORKERS)
            client.unregister(model, version)
    if folder is not None and folder.name.startswith(_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)


def new_folder(state: ServerState) -> Path:
    """Path of a new folder for a version, whose name is that of no archive in the model store."""
    # TorchServe looks for the last part of the path in its model store first.
    return Path(state.tmp).resolve() / f"{_FOLDER}{uuid4().hex[:12]}"


def check_group(new: NewVersion, old: Path) -> None:
    """ServingError if ``new`` has other ranks or hosts than the archive ``old``, or several hosts."""
    ranks, hosts = group_of(new.path)
    if hosts > 1:
        raise ServingError(
            f"{new.path} is served by {hosts} hosts, which a rollout cannot bring: start a second server, and move "
            "its clients"
        )
    try:
        before = group_of(old)
    except ArchiveError:
        return
    if before != (ranks, hosts):
        raise ServingError(
            f"{new.path} has {ranks} ranks a worker, and the version that is served has {before[0]}: make the archive "
            "with as many"
        )


def check_body_limit(new: NewVersion, run_dir: RunDir) -> None:
    """ServingError if the server refuses bodies that ``new`` takes: its limit holds until it stops."""
    limit = int(load_properties(run_dir.config_file).get("max_request_size", "0"))
    wanted = new.declaration.serving.max_body_bytes
    if 0 < limit < wanted:
        raise ServingError(
            f"version {new.version} takes bodies of {wanted:,} bytes, and the server was started with a limit of "
            f"{limit:,}: lower serving.max_body_bytes, or start the server with the new archive"
        )


def _start_last_workers(client: ManagementClient, model: str, version: str, workers: int) -> None:
    client.scale(model, workers, version)
    end = time.monotonic() + _STARTED_S
    while time.monotonic() < end:
        there = client.workers(model, version)
        if len(there) >= workers and all(worker.pid > 0 for worker in there):
            return
        time.sleep(_POLL_S)
