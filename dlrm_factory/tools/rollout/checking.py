"""Checks before a rollout, and what one leaves that was killed."""

from __future__ import annotations

from pathlib import Path

from dlrm_factory.errors import ArchiveError, ServingError
from dlrm_factory.tools.archive.model_config import group_of
from dlrm_factory.tools.rollout.removing import remove_version
from dlrm_factory.tools.rollout.state import RolloutFile
from dlrm_factory.tools.rollout.versions import NewVersion
from dlrm_factory.tools.server import ManagementClient, ModelVersion, RunDir, ServerState
from dlrm_factory.tools.server.settings import load_properties

__all__ = ["check_alone", "check_body_limit", "check_group", "check_version", "clear_interrupted"]


def check_alone(file: RolloutFile) -> None:
    """ServingError while a rollout of any model runs."""
    for model, each in file.models().items():
        if each.running is not None and each.running.lives():
            raise ServingError(
                f"a rollout of {model} {each.running.version} runs (pid {each.running.pid}); wait for it, or end it "
                "with `dlrm rollback`"
            )


def check_version(
    client: ManagementClient, new: NewVersion, old: ModelVersion, run_dir: RunDir, state: ServerState
) -> None:
    """ServingError for a version that cannot be brought beside the ``old`` one."""
    there = [each.version for each in client.versions(old.model)]
    if new.version in there:
        raise ServingError(
            f"{old.model} {new.version} is registered already ({', '.join(there)} are): make the archive with another "
            "`dlrm archive --version`, or wait until it is removed"
        )
    if not old.ready:
        raise ServingError(f"{old.model} {old.version} has no worker that is ready; see `dlrm ready`")
    check_group(new, Path(state.model_store) / old.location)
    check_body_limit(new, run_dir)


def clear_interrupted(file: RolloutFile, state: ServerState, client: ManagementClient, model: str) -> None:
    """Remove what a rollout left that was killed. For whoever holds the file."""
    found = file.model(model)
    if found.running is None:
        return
    version = found.running.version
    if client.describe(model).version != version:
        folder = found.folders.get(version)
        remove_version(
            client, model, version, temporary=Path(state.tmp), folder=None if folder is None else Path(folder)
        )
    file.change(model, running=None, canary=None)


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
