"""A version of a model, brought to a running server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ArchiveError, ServingError, WeightsError
from dlrm_factory.tools.archive.listing import read_text
from dlrm_factory.tools.archive.reading import read_archive_declaration, unpack_archive
from dlrm_factory.tools.rollout.removing import FOLDER
from dlrm_factory.tools.server import LogMarks, ManagementClient, Progress, RunDir, ServerState
from dlrm_factory.tools.server.readiness import wait_for_workers
from dlrm_factory.tools.server.store import ServedModel, find_models
from dlrm_factory.weights.seal import MANIFEST

__all__ = ["NewVersion", "bring_version", "new_folder", "open_version"]


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


def new_folder(state: ServerState) -> Path:
    """Path of a new folder for a version, whose name is that of no archive in the model store."""
    # TorchServe looks for the last part of the path in its model store first.
    return Path(state.tmp).resolve() / f"{FOLDER}{uuid4().hex[:12]}"
