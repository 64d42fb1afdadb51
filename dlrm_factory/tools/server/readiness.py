"""Wait until workers are ready, and the reason from the logs when they do not become so."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server.management import ManagementClient, Worker
from dlrm_factory.tools.server.processes import is_running
from dlrm_factory.tools.server.rundir import RunDir, ServerState
from dlrm_factory.tools.server.store import ServedModel

__all__ = [
    "LogMarks",
    "NotAnswering",
    "Progress",
    "load_failure",
    "load_step",
    "registration_failure",
    "startup_failure",
    "wait_for_models",
    "wait_for_server",
    "wait_for_workers",
    "why_ended",
    "worker_lines",
]

_MODEL_LINE = re.compile(
    r"^\S+ \[\w+ *\] W-(?P<worker>\d+)-(?P<model>.+)_(?P<version>[^_]*?)-std(?:out|err) MODEL_LOG - (?P<text>.*)$"
)
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
# What TorchServe says when the handler's module cannot be imported, whatever the reason.
_MISLEADING = "ts.torch_handler"
# A worker that ended before it was told to load. (One that is too slow for a request is another matter.)
_NEVER_STARTED = (
    r"(?:Backend stream closed|Backend worker startup time out|Failed start worker|Failed to connect)"
)
_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\dT", re.MULTILINE)
_NOT_STARTED_IN = re.compile(r'^Caused by: .* \(in directory "(.+?)"\)', re.MULTILINE)
# What a worker prints for MemoryError and RuntimeError, of which TorchServe itself then logs nothing.
_REFUSED = ("Failed to load model ", "Load model ")
_MAX_LINES = 8
# What a worker says when it compiles, or waits for another process that does.
_COMPILES = ("Compiling the dense parts ", "Waiting for another process, which compiles ")
# What a leader says every 10 s.
_WAITS = "Waiting for host"
_COMPILING = "compiling the model's dense parts, about 30 s, once for this machine"

_POLL_S = 0.2
# Between the first and the last line of a worker's traceback.
_LOG_LAG_S = 1.0
# Between TorchServe's word that a load failed and the worker's traceback: on a busy machine its log comes late.
_MAX_LOG_LAG_S = 10.0
# A ready worker answers in milliseconds; this leaves time for a full queue before it.
_MAX_ANSWER_S = 60.0
# TorchServe hears of a worker's end sooner than this.
_MAX_ENDED_S = 5.0
# Workers that are started anew beside a failed thread have been seen to get no requests either.
_RESTART = "Start the server again: `dlrm stop`, then `dlrm serve`"


@dataclass(frozen=True, kw_only=True)
class LogMarks:
    """Ends of a run directory's logs at some moment, so that only what came later is read."""

    run_dir: RunDir
    sizes: tuple[tuple[Path, int], ...]

    @classmethod
    def now(cls, run_dir: RunDir) -> LogMarks:
        logs = (run_dir.model_log, run_dir.ts_log, run_dir.console_log)
        return cls(run_dir=run_dir, sizes=tuple((log, _size(log)) for log in logs))

    def since(self, log: Path) -> str:
        """Text written to ``log`` since; all of it when the log was begun anew meanwhile."""
        mark = dict(self.sizes)[log]
        try:
            with log.open("rb") as handle:
                handle.seek(mark if _size(log) >= mark else 0)
                return handle.read().decode("utf-8", errors="replace")
        except OSError:
            return ""


def startup_failure(console: str) -> str:
    """Reason that the Java process ended, from what it printed."""
    invalid = re.search(r"^Invalid configuration: (.*)$", console, re.MULTILINE)
    if invalid:
        return f"TorchServe refuses its settings: {invalid[1]}"
    taken = re.search(r"Failed to bind to address:? (\S+)", console)
    if taken:
        return f"TorchServe cannot listen on {taken[1].strip('/')}: it is taken; give other ports"
    if "UnsupportedClassVersionError" in console:
        return "this Java is too old for TorchServe; it needs version 11 or newer (set JAVA_HOME)"
    thrown = re.search(
        r"^(?:Exception in thread \S+ |Caused by: )?((?:\w+\.)+\w*(?:Exception|Error): .*)$", console, re.M
    )
    lines = [line for line in console.splitlines() if line.strip()]
    said = thrown[1] if thrown else " / ".join(lines[-3:]) or "it printed nothing"
    return f"TorchServe stopped while starting: {said}"


def registration_failure(ts_log: str, location: str) -> str | None:
    """Reason that TorchServe did not register the archive ``location``; None when TorchServe says nothing of it."""
    pattern = rf"Failed to load model: {re.escape(location)}\n(?:[\w.$]*\.)?(\w+): (.*)"
    found = re.search(pattern, ts_log)
    return f"TorchServe cannot register {location}: {found[2]} ({found[1]})" if found else None


def load_failure(model_log: str, ts_log: str, model: str, version: str | None = None) -> str | None:
    """Reason that a worker of ``model`` died while loading it; None when none did. ``version``: None for any."""
    name = re.escape(model)
    died = re.search(rf"Load model failed: {name}, error: ", ts_log)
    which = r"\S*" if version is None else re.escape(version)
    never_started = any(
        _was_to_load(ts_log[found.start() :])
        for found in re.finditer(
            rf" W-\d+-{name}_{which} \S+ - Backend worker error\n\S+: {_NEVER_STARTED}", ts_log
        )
    )
    lines = worker_lines(model_log, model, version)
    if not (died or never_started or any(line.startswith(_REFUSED) for line in lines)):
        return None
    reason = _exception(lines)
    if reason is not None:
        return f'model "{model}" did not load: {reason}'
    last = "\n".join(f"  {line}" for line in lines[-_MAX_LINES:]) or "  (nothing)"
    return (
        f'model "{model}" did not load: its worker died without an exception, as when it is killed for '
        f"memory. It printed last:\n{last}"
    )


def _was_to_load(error: str) -> bool:
    """False for a worker of a version that was removed, which TorchServe tries to start in a folder that is gone.

    ``error``: the log from the worker's error on.
    """
    if "Failed start worker" not in error.splitlines()[1]:
        return True
    following = _LOG_LINE.search(error)
    folder = _NOT_STARTED_IN.search(error[: following.start()] if following else error)
    # Without its cause the error is not written to its end; it is looked at again.
    return folder is not None and Path(folder[1]).exists()


def load_step(model_log: str, model: str, version: str | None = None) -> str:
    """Say what the workers of ``model`` have been at since they started, if that takes long; else empty."""
    lines = worker_lines(model_log, model, version)
    if lines and lines[-1].startswith(_WAITS):
        return lines[-1][0].lower() + lines[-1][1:]
    return _COMPILING if any(line.startswith(_COMPILES) for line in lines) else ""


def worker_lines(model_log: str, model: str, version: str | None = None) -> list[str]:
    """Lines that the workers of ``model`` printed, without TorchServe's prefix. ``version``: None for any."""
    matches = (_MODEL_LINE.match(line) for line in model_log.splitlines())
    return [
        match["text"]
        for match in matches
        if match and match["model"] == model and version in (None, match["version"])
    ]


def _exception(lines: list[str]) -> str | None:
    """The exception of the first traceback in ``lines``, its message whole but not too long."""
    starts = [
        index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")
    ]
    if not starts:
        return None
    found = [_message(lines[start + 1 :]) for start in starts]
    # Of a chain the last exception is the one raised to the top. The worker tries again and again, so only
    # the first chain is read.
    last = 0
    while last + 1 < len(starts) and any(
        line.startswith(_CHAINED) for line in lines[starts[last] : starts[last + 1]]
    ):
        last += 1
    return found[0] if _MISLEADING in found[last] else found[last]


def _message(lines: list[str]) -> str:
    """The lines after a traceback's frames: the exception, and the rest of its message."""
    body: list[str] = []
    for line in lines:
        if not body and (line.startswith(" ") or not line):
            continue
        if line.startswith((*_CHAINED, "Traceback ", "s_name_part0=", "Listening on port", "Backend worker")):
            break
        body.append(line)
    shown = [line for line in body if line.strip()][:_MAX_LINES]
    return "\n".join(shown) or "no message"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class NotAnswering(ServingError):
    """A model that TorchServe calls ready and that does not answer: only a new start of the server helps."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a wait: ``ready`` of ``wanted`` workers, of ``present`` in all.

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
        ended = why_ended(state, marks)
        if ended is not None:
            raise ended
        _check_time(deadline, f"TorchServe (pid {state.pid}) does not answer at {state.management} yet")
        time.sleep(_POLL_S)


def why_ended(state: ServerState, marks: LogMarks) -> ServingError | None:
    """Reason for which a server that was to start has ended; None if it runs."""
    if is_running(state):
        return None
    return ServingError(startup_failure(marks.since(marks.run_dir.console_log)))


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
    version: str | None = None,
) -> None:
    """Returns once ``model`` has exactly ``wanted`` workers, all ready, it answers, and those scaled away have ended.

    Raises ServingError when a worker dies while it loads (``marks`` says where to read of it; None for a
    server whose logs are elsewhere), or when ``deadline`` (``time.monotonic()``) passes. ``version``: None for the
    default one.
    """
    seen: dict[int, Worker] = {}
    ended_since: dict[int, float] = {}
    while True:
        workers = client.workers(model, version)
        # TorchServe calls a worker ready whose thread has failed, and which has ended for want of it.
        ended = [each for each in workers if marks and each.ready and each.pid > 0 and not _lives(each.pid)]
        _check_ended(model, ended, ended_since)
        ready = sum(worker.ready for worker in workers) - len(ended)
        doing = (
            load_step(marks.since(marks.run_dir.model_log), model, version)
            if marks and ready < wanted
            else ""
        )
        tell(Progress(model=model, ready=ready, present=len(workers), wanted=wanted, doing=doing))
        seen |= {worker.pid: worker for worker in workers if worker.pid > 0}
        # By id: while a group of ranks starts, TorchServe takes one rank's pid after the other for the worker's.
        gone = {pid for pid, worker in seen.items() if worker.id not in {each.id for each in workers}}
        if len(workers) == ready == wanted and not (marks and any(_lives(pid) for pid in gone)):
            if wanted:
                wait_until_answering(client, model, deadline=deadline, version=version)
            return
        _check_deaths(marks, model, version, ready, wanted)
        _check_time(deadline, f'model "{model}" has {ready} of {wanted} workers ready{_where(marks)}')
        time.sleep(_POLL_S)


def wait_until_answering(
    client: ManagementClient,
    model: str,
    *,
    deadline: float,
    within: float = _MAX_ANSWER_S,
    version: str | None = None,
) -> None:
    """Returns once a worker of ``model`` has answered a question: TorchServe's READY alone proves nothing.

    Raises ServingError if none does ``within`` so many seconds, or by ``deadline`` (``time.monotonic()``).
    """
    start = time.monotonic()
    end = min(start + within, max(deadline, start + 1.0))
    while (left := end - time.monotonic()) > 0:
        if client.ask_worker(model, left, version):
            return
        time.sleep(min(_POLL_S, max(end - time.monotonic(), 0)))
    raise NotAnswering(
        f'model "{model}" does not answer: TorchServe calls its workers ready, but none has answered within '
        f"{end - start:.0f} s. {_RESTART}"
    )


def _check_ended(model: str, ended: Sequence[Worker], since: dict[int, float]) -> None:
    """Notes when each of ``ended`` was first seen so; ServingError once TorchServe must have missed it."""
    now = time.monotonic()
    for worker in ended:
        if now - since.setdefault(worker.pid, now) > _MAX_ENDED_S:
            raise NotAnswering(
                f'model "{model}" does not answer: TorchServe calls worker {worker.id} ready, but its process '
                f"(pid {worker.pid}) has ended. {_RESTART}"
            )


def _check_deaths(marks: LogMarks | None, model: str, version: str | None, ready: int, wanted: int) -> None:
    if marks is None or _failure(marks, model, version) is None:
        return
    give_up = time.monotonic() + _MAX_LOG_LAG_S
    log = marks.run_dir.model_log
    while _exception(worker_lines(marks.since(log), model, version)) is None and time.monotonic() < give_up:
        time.sleep(_POLL_S)
    time.sleep(_LOG_LAG_S)
    raise ServingError(
        f"{_failure(marks, model, version)}\n({ready} of {wanted} workers ready; {_where(marks)[2:]})"
    )


def _failure(marks: LogMarks, model: str, version: str | None) -> str | None:
    run_dir = marks.run_dir
    return load_failure(marks.since(run_dir.model_log), marks.since(run_dir.ts_log), model, version)


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
