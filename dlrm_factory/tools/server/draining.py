"""Drain of versions of models: no new request is taken, those that were taken are answered."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dlrm_factory.host.worker_file import WorkerFile, find_worker_file
from dlrm_factory.tools.server.management import ManagementClient, ModelVersion

__all__ = ["drain_models", "wait_for_quiet", "worker_files"]

# After the bound: requests in the queue are answered at once, and a batch that was begun is not waited for.
_TURN_AWAY_S = 2.0
_POLL_S = 0.02
# Between a worker's last sign and the word that it has nothing: a batch may be on its way to it.
_SETTLE_S = 0.1


def drain_models(
    client: ManagementClient,
    *,
    temporary: Path,
    seconds: float,
    tell: Callable[[str], None] = lambda _: None,
) -> bool:
    """Let all models of a server answer what they have and take nothing more. Only the end of the server follows.

    The front end answers new requests with 503 from now on. After ``seconds`` workers do so too, with what waits.

    Args:
        client: of the server's management API.
        temporary: the server's temporary folder.
        seconds: to answer what has come.
        tell: called with what is waited for.

    Returns:
        True if all that had come was answered with scores.
    """
    versions = [version for model in client.models() for version in client.versions(model)]
    with worker_files([worker.pid for each in versions for worker in each.workers], temporary) as files:
        for each in versions:
            if each.workers:
                client.close_queue(each.model, each.version, len(each.workers))
        if wait_for_quiet(client, versions, files, seconds, tell):
            return True
        for file in files:
            file.turns_away = True
        wait_for_quiet(client, versions, files, _TURN_AWAY_S)
        return False


def wait_for_quiet(
    client: ManagementClient,
    versions: Sequence[ModelVersion],
    files: Sequence[WorkerFile],
    seconds: float,
    tell: Callable[[str], None] = lambda _: None,
    *,
    settle_s: float = _SETTLE_S,
) -> bool:
    """Return True once no request of ``versions`` waits or is worked at, False if some do after ``seconds``.

    Args:
        client: of the server's management API.
        versions: whose queues are asked.
        files: of their workers.
        seconds: to wait at most.
        tell: called with what is waited for.
        settle_s: seconds for which it must be so.
    """
    end = time.monotonic() + seconds
    seen = time.monotonic()
    while True:
        waiting = sum(client.describe(each.model, each.version).waiting for each in versions)
        busy = sum(file.busy for file in files)
        now = time.monotonic()
        if waiting or busy:
            seen = now
            tell(f"{waiting} requests wait, {busy} workers are at work")
        elif now - seen >= settle_s and all(file.silent_s() >= settle_s for file in files):
            return True
        if now >= end:
            return False
        time.sleep(_POLL_S)


@contextlib.contextmanager
def worker_files(pids: Sequence[int], temporary: Path) -> Iterator[list[WorkerFile]]:
    """Files of the workers ``pids`` that have one, mapped until the block ends."""
    with contextlib.ExitStack() as stack:
        found = [file for pid in pids if (file := find_worker_file(pid, temporary)) is not None]
        for file in found:
            stack.callback(file.close)
        yield found
