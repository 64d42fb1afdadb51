"""Waits for workers: until a model has as many ready ones as it should, or something went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server.failures import (
    LogMarks,
    load_failure,
    load_step,
    registration_failure,
    startup_failure,
)
from dlrm_factory.tools.server.management import ManagementClient, Worker
from dlrm_factory.tools.server.processes import is_running
from dlrm_factory.tools.server.rundir import ServerState
from dlrm_factory.tools.server.store import ServedModel

__all__ = [
    "NotAnswering",
    "Progress",
    "wait_for_models",
    "wait_for_server",
    "wait_for_workers",
    "wait_until_answering",
]

_POLL_S = 0.2
# Between TorchServe's word that a load failed and the last line of the worker's traceback.
_LOG_LAG_S = 1.0
# A ready worker answers in milliseconds; this leaves time for a full queue before it.
_MAX_ANSWER_S = 60.0
# TorchServe hears of a worker's end sooner than this.
_MAX_ENDED_S = 5.0


class NotAnswering(ServingError):
    """A model that TorchServe calls ready and that does not answer: only a new start of the server helps."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a wait tells while it lasts: ``ready`` of ``wanted`` workers, of ``present`` in all.

    ``doing``: what takes their loading long; empty if nothing does.
    """

    model: str
    ready: int
    present: int
    wanted: int
    doing: str = ""


def wait_for_server(state: ServerState, client: ManagementClient, marks: LogMarks, deadline: float) -> None:
    """Returns once the management API answers; TorchServe unpacks the archives before it does."""
    while not client.answers():
        if not is_running(state):
            raise ServingError(startup_failure(marks.since(marks.run_dir.console_log)))
        _check_time(deadline, f"TorchServe (pid {state.pid}) does not answer at {state.management} yet")
        time.sleep(_POLL_S)


def wait_for_models(
    client: ManagementClient,
    models: Sequence[ServedModel],
    *,
    marks: LogMarks,
    workers: int | None,
    deadline: float,
    tell: Callable[[Progress], None],
) -> dict[str, int]:
    """Returns each model's ready workers, once all are. ``workers`` overrules what the archives ask for."""
    registered = client.models()
    for model in models:
        if model.name not in registered:
            reason = registration_failure(marks.since(marks.run_dir.ts_log), model.location)
            raise ServingError(
                reason or f"TorchServe did not register {model.spec}; see {marks.run_dir.ts_log}"
            )
    counts: dict[str, int] = {}
    for model in models:
        wanted = client.wanted_workers(model.name)
        if workers is not None and workers != wanted:
            # An archive's minWorkers beats every setting, so it can only be changed afterwards.
            client.scale(model.name, workers)
            wanted = workers
        counts[model.name] = wanted
    for name, wanted in counts.items():
        wait_for_workers(client, name, wanted, marks=marks, deadline=deadline, tell=tell)
    return counts


def wait_for_workers(
    client: ManagementClient,
    model: str,
    wanted: int,
    *,
    marks: LogMarks | None,
    deadline: float,
    tell: Callable[[Progress], None],
) -> None:
    """Returns once ``model`` has exactly ``wanted`` workers, all ready, it answers, and those scaled away have ended.

    Raises ServingError when a worker dies while it loads (``marks`` says where to read of it; None for a
    server whose logs are elsewhere), or when ``deadline`` (``time.monotonic()``) passes.
    """
    seen: dict[int, Worker] = {}
    ended_since: dict[int, float] = {}
    while True:
        workers = client.workers(model)
        # TorchServe calls a worker ready whose thread has failed, and which has ended for want of it.
        ended = [each for each in workers if marks and each.ready and each.pid > 0 and not _lives(each.pid)]
        _check_ended(model, ended, ended_since)
        ready = sum(worker.ready for worker in workers) - len(ended)
        doing = load_step(marks.since(marks.run_dir.model_log), model) if marks and ready < wanted else ""
        tell(Progress(model=model, ready=ready, present=len(workers), wanted=wanted, doing=doing))
        seen |= {worker.pid: worker for worker in workers if worker.pid > 0}
        gone = set(seen) - {worker.pid for worker in workers}
        if len(workers) == ready == wanted and not (marks and any(_lives(pid) for pid in gone)):
            if wanted:
                wait_until_answering(client, model, deadline=deadline)
            return
        _check_deaths(marks, model, ready, wanted)
        _check_time(deadline, f'model "{model}" has {ready} of {wanted} workers ready{_where(marks)}')
        time.sleep(_POLL_S)


def wait_until_answering(
    client: ManagementClient, model: str, *, deadline: float, within: float = _MAX_ANSWER_S
) -> None:
    """Returns once a worker of ``model`` has answered a question: TorchServe's READY alone proves nothing.

    Raises ServingError if none does ``within`` so many seconds, or by ``deadline`` (``time.monotonic()``).
    """
    start = time.monotonic()
    end = min(start + within, max(deadline, start + 1.0))
    while (left := end - time.monotonic()) > 0:
        if client.ask_worker(model, left):
            return
        time.sleep(min(_POLL_S, max(end - time.monotonic(), 0)))
    raise NotAnswering(
        f'model "{model}" does not answer: TorchServe calls its workers ready, but none has answered within '
        f"{end - start:.0f} s. {_RESTART}"
    )


# Workers that are started anew beside a failed thread have been seen to get no requests either.
_RESTART = "Start the server again: `dlrm stop`, then `dlrm serve`"


def _check_ended(model: str, ended: Sequence[Worker], since: dict[int, float]) -> None:
    """Notes when each of ``ended`` was first seen so; ServingError once TorchServe must have missed it."""
    now = time.monotonic()
    for worker in ended:
        if now - since.setdefault(worker.pid, now) > _MAX_ENDED_S:
            raise NotAnswering(
                f'model "{model}" does not answer: TorchServe calls worker {worker.id} ready, but its process '
                f"(pid {worker.pid}) has ended. {_RESTART}"
            )


def _check_deaths(marks: LogMarks | None, model: str, ready: int, wanted: int) -> None:
    if marks is None or _failure(marks, model) is None:
        return
    time.sleep(_LOG_LAG_S)
    raise ServingError(f"{_failure(marks, model)}\n({ready} of {wanted} workers ready; {_where(marks)[2:]})")


def _failure(marks: LogMarks, model: str) -> str | None:
    run_dir = marks.run_dir
    return load_failure(marks.since(run_dir.model_log), marks.since(run_dir.ts_log), model)


def _check_time(deadline: float, status: str) -> None:
    if time.monotonic() > deadline:
        raise ServingError(f"time-out: {status}; give it longer with --timeout SECONDS")


def _where(marks: LogMarks | None) -> str:
    return f"; workers print to {marks.run_dir.model_log}" if marks else ""


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
