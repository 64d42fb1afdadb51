"""Versions that are kept for a while after a rollout, and then removed by the process beside the server."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout.removing import remove_version
from dlrm_factory.tools.rollout.state import KeptVersion, RolloutFile
from dlrm_factory.tools.server import ManagementClient, RunDir, ServerState

__all__ = ["remove_kept"]

logger = logging.getLogger(__name__)

# A roll-back may hold the file for some calls to TorchServe; a rollout waits until the removal is over.
_ROLL_BACK_S = 30.0


def remove_kept(
    run_dir: RunDir, state: ServerState, client: ManagementClient, *, now: float | None = None
) -> int:
    """Remove the versions whose time is over, and return how many; none while a rollout runs.

    ``now``: seconds since the epoch.
    """
    file = RolloutFile(run_dir)
    now = time.time() if now is None else now
    due = [(name, kept) for name, each in file.models().items() for kept in each.kept if kept.until <= now]
    if not due:
        return 0
    removed = 0
    try:
        with file.no_removal(0.0):
            for name, kept in due:
                removed += _remove(file, state, client, name, kept)
    except ServingError as error:
        logger.info("Versions stay for now: %s", error)
    return removed


def _remove(
    file: RolloutFile, state: ServerState, client: ManagementClient, model: str, kept: KeptVersion
) -> int:
    """Remove one version, unless a roll-back has made it the default meanwhile.

    The file is not held while the version goes: a roll-back to another one must not wait for that.
    """
    with file.held(0.0):
        current = file.model(model)
        if kept not in current.kept or client.describe(model).version == kept.version:
            return 0
        going = msgspec.structs.replace(kept, going=True)
        file.change(model, kept=tuple(going if each == kept else each for each in current.kept))
        folder = current.folders.get(kept.version)
    remove_version(
        client,
        model,
        kept.version,
        temporary=Path(state.tmp),
        folder=None if folder is None else Path(folder),
    )
    with file.held(_ROLL_BACK_S):
        current = file.model(model)
        file.change(
            model,
            kept=tuple(each for each in current.kept if each != going),
            folders={version: path for version, path in current.folders.items() if version != kept.version},
        )
    logger.info("Model %s: version %s is removed", model, kept.version)
    return 1
