"""Number of workers of a running model: changed, waited for, and drained on the way down."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from dlrm_factory.errors import ArchiveError, ServingError
from dlrm_factory.host.worker_file import WorkerFile, find_worker_file
from dlrm_factory.tools.archive.model_config import group_of
from dlrm_factory.tools.archive.reading import read_archive_declaration
from dlrm_factory.tools.client.tokens import is_loopback
from dlrm_factory.tools.server.management import ManagementClient
from dlrm_factory.tools.server.predicting import Endpoint, find_endpoint, probe_of
from dlrm_factory.tools.server.readiness import LogMarks, NotAnswering, Progress, wait_for_workers
from dlrm_factory.tools.server.rundir import ServerState
from dlrm_factory.tools.server.server import running_server

__all__ = [
    "Drain",
    "Scaled",
    "core_oversubscription",
    "scale_model",
    "scale_workers",
]

# A worker that is at work on one batch for longer is ended all the same: its requests get a retryable error.
MAX_DRAIN_S = 5.0
# Where nobody can send probes, workers without requests are not waited for.
MAX_DRAIN_UNPROBED_S = 0.25
_POLL_S = 0.005
_PROBE_AFTER_S = 0.03

# Sends the model a request, and returns soon, answered or not.
Probe = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Drain:
    """Lets workers of a server on this machine hold their next batch unanswered.

    TorchServe queues the requests of a worker that it ends again, at the front, for the other workers.

    Args:
        temporary: the server's temporary folder; this process's own if None.
        probe: called for workers to which no request comes: one may come in the very moment in which they end,
            and be lost, so each is given one to hold.
    """

    temporary: Path | None = None
    probe: Probe | None = None

    @contextlib.contextmanager
    def workers(self, pids: Sequence[int]) -> Iterator[int]:
        """Let the workers ``pids`` hold until the block ends.

        Yields:
            How many of them hold. The others cannot be drained, or did not come to it in time.
        """
        with contextlib.ExitStack() as stack:
            files = [file for pid in pids if (file := find_worker_file(pid, self.temporary)) is not None]
            for file in files:
                stack.callback(_release, file)
                file.drain = True
            self._wait(files)
            yield sum(file.holding for file in files)

    def _wait(self, files: Sequence[WorkerFile]) -> None:
        start = time.monotonic()
        bound = MAX_DRAIN_UNPROBED_S if self.probe is None else MAX_DRAIN_S
        while not all(file.holding for file in files) and (spent := time.monotonic() - start) < bound:
            if self.probe is not None and spent > _PROBE_AFTER_S:
                self.probe()
            else:
                time.sleep(_POLL_S)


def _release(file: WorkerFile) -> None:
    file.drain = False
    file.close()


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Workers of ``model`` before and after, and the seconds it took.

    ``oversubscription``: a warning if the workers' threads are more than this machine's cores; None if they are not,
    or the server is elsewhere.
    """

    model: str
    before: int
    after: int
    seconds: float
    oversubscription: str | None = None


def scale_workers(
    workers: int,
    *,
    model: str = "dlrm",
    run_dir: Path = Path(".dlrm"),
    url: str | None = None,
    token: str | None = None,
    timeout: float = 600.0,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Scaled:
    """Scale a model of a running server to ``workers`` workers, as ``dlrm scale`` does; returns when all are ready.

    Args:
        workers: 0 or more.
        model: name of the model; its default version is scaled.
        run_dir: run directory of the server.
        url: management address of another server, in place of ``run_dir``.
        token: management token; None for that of the run directory.
        timeout: seconds until all must be ready.
        tell: called with the progress.

    Raises:
        ServingError: no such server or model, a worker that dies while it loads, or a time-out.
    """
    endpoint = find_endpoint("management", run_dir=run_dir, url=url, token=token)
    marks = LogMarks.now(endpoint.local) if endpoint.local else None
    state = running_server(run_dir) if endpoint.local else None
    with ManagementClient(endpoint.url, endpoint.auth) as client:
        drain = _drain(endpoint, run_dir, model, state)
        done = scale_model(client, model, workers, marks=marks, timeout=timeout, tell=tell, drain=drain)
        if state is None:
            return done
        archive = Path(state.model_store) / client.archive(model)
    return replace(done, oversubscription=core_oversubscription(archive, workers))


def core_oversubscription(archive: Path, workers: int, cores: int | None = None) -> str | None:
    """Warning if ``workers`` of the model in ``archive`` have more torch threads than ``cores``, else None.

    None also for an archive that carries no declaration to ask. ``cores``: None for those of this process.
    """
    try:
        ranks, hosts = group_of(archive)
        threads = read_archive_declaration(archive).serving.threads * ranks // hosts
    except ArchiveError:
        return None
    cores = cores or len(os.sched_getaffinity(0))
    if workers * threads <= cores:
        return None
    return (
        f"{_count(workers, 'worker')} of {_count(threads, 'thread')} share {_count(cores, 'core')}: no more requests "
        f"are answered than by {max(1, cores // threads)}, and each waits longer"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _drain(endpoint: Endpoint, run_dir: Path, model: str, state: ServerState | None) -> Drain | None:
    if state is None:
        # A plain `torchserve` of this machine keeps its files where every program does.
        return Drain() if is_loopback(endpoint.url) else None
    inference = find_endpoint("inference", run_dir=run_dir, url=None, token=None)
    return Drain(temporary=Path(state.tmp), probe=probe_of(inference, model))


def scale_model(
    client: ManagementClient,
    model: str,
    workers: int,
    *,
    marks: LogMarks | None = None,
    timeout: float = 600.0,
    tell: Callable[[Progress], None] = lambda _: None,
    drain: Drain | None = None,
) -> Scaled:
    """Return once ``model`` has exactly ``workers`` workers, all ready.

    Workers that go are drained first, where ``drain`` is given: the requests they hold go to those that stay.

    Args:
        client: of the server's management API.
        model: name of the model; its default version is scaled.
        workers: how many to have.
        marks: the server's logs; None where they are elsewhere.
        timeout: seconds until all must be ready.
        tell: called with the progress.
        drain: for a server on this machine.

    Raises ServingError when a worker dies while it loads or ``timeout`` seconds pass; TorchServe then
    goes on trying.
    """
    if workers < 0:
        raise ServingError(f"{workers} workers: give 0 or more")
    start = time.monotonic()
    present = client.workers(model)
    before = len(present)
    # TorchServe ends the last ones of its list.
    going = [worker.pid for worker in present[workers:] if worker.ready]
    try:
        with drain.workers(going) if drain else nullcontext():
            client.scale(model, workers)
            wait_for_workers(client, model, workers, marks=marks, deadline=start + timeout, tell=tell)
    except ServingError as error:
        if isinstance(error, NotAnswering) or not client.answers():
            raise
        advice = f"TorchServe goes on trying; `dlrm scale {before} --model {model}` goes back to {before}"
        raise ServingError(f"{error}\n{advice}") from error
    return Scaled(model=model, before=before, after=workers, seconds=time.monotonic() - start)
