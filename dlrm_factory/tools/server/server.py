"""Start, find and stop the TorchServe of one run directory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from dlrm_factory.errors import ServingError
from dlrm_factory.rendezvous import DEFAULT_PORTS
from dlrm_factory.tools.client.tokens import KeyFileAuth
from dlrm_factory.tools.java import find_java
from dlrm_factory.tools.server.draining import drain_models
from dlrm_factory.tools.server.management import http_client, management_client
from dlrm_factory.tools.server.meeting import meeting_environment
from dlrm_factory.tools.server.processes import (
    is_running,
    launch,
    launch_environment,
    launch_sidecar,
    server_processes,
    stop_processes,
)
from dlrm_factory.tools.server.ranks import with_other_ranks
from dlrm_factory.tools.server.readiness import (
    LogMarks,
    Progress,
    wait_for_models,
    wait_for_server,
    why_ended,
)
from dlrm_factory.tools.server.rundir import RunDir, ServerState
from dlrm_factory.tools.server.settings import (
    Address,
    ServerSettings,
    base_config,
    check_free,
    free_ports,
    server_settings,
)
from dlrm_factory.tools.server.store import ServedModel, check_space, find_models

__all__ = [
    "RunningServer",
    "ServeOptions",
    "running_server",
    "start_server",
    "stop_server",
]

logger = logging.getLogger(__name__)

_DELAY_STEP_S = 0.5
# A server that does not tell its models for so long is not waited for.
_ANSWER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of a server to start.

    Args:
        model_store: folder of the archives.
        models: ``NAME=ARCHIVE`` each.
        run_dir: folder for the server's state, tokens and logs.
        ports: property name (``inference_address``, …) → port; None keeps the base's, 0 picks a free one.
        ts_config: base settings; None for ``./config.properties``, else the shipped ones.
        token_auth: False switches tokens off.
        workers: workers of each model; None leaves it to the archive.
        ranks: processes of each worker; None leaves it to the archive.
        hosts: that these are spread over; None for this one alone.
        group_address: of this host, by which other hosts of groups reach it; needed if there are any.
        group_ports: ``FIRST-LAST``, where they find its groups.
        secret_file: that all hosts of a group have; None for one of the run directory, which is made.
        timeout: seconds until the models must be ready.
        log_level: of TorchServe's own messages: warn, info or debug.
        access_log: one line a request.
        ready_port: where ``GET /ready`` and ``GET /live`` are answered; 0 picks a free one, None leaves them out.
        ready_host: address of this machine that they are answered at.
        drain_seconds: to answer what has come, when the server is stopped; what then waits gets a 503.
        drain_delay: seconds for which the server is not ready, and answers, before it drains.
    """

    model_store: Path
    models: tuple[str, ...] = ("dlrm=dlrm.mar",)
    run_dir: Path = Path(".dlrm")
    ports: Mapping[str, int | None] = field(default_factory=dict)
    ts_config: Path | None = None
    token_auth: bool = True
    workers: int | None = None
    ranks: int | None = None
    hosts: int | None = None
    group_address: str | None = None
    group_ports: str = DEFAULT_PORTS
    secret_file: Path | None = None
    timeout: float = 600.0
    log_level: str = "warn"
    access_log: bool = False
    ready_port: int | None = None
    ready_host: str = "127.0.0.1"
    drain_seconds: float = 30.0
    drain_delay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A started server, and the ready workers of each of its models."""

    run_dir: RunDir
    state: ServerState
    workers: dict[str, int]

    @property
    def token_file(self) -> Path | None:
        return self.run_dir.key_file if self.state.token_auth else None


def start_server(options: ServeOptions, tell: Callable[[Progress], None] = lambda _: None) -> RunningServer:
    """Start TorchServe as ``dlrm serve`` does; returns once every worker of every model is ready.

    The server outlives this process; `stop_server` ends it.

    Args:
        options: models, ports, folders and limits.
        tell: called with the progress.

    Raises:
        ServingError: no such archive, a port that is taken, a worker that dies while it loads, or a time-out.
            Nothing is left behind.
    """
    java = find_java()
    models = find_models(options.model_store, options.models)
    run_dir = RunDir.at(options.run_dir)
    run_dir.prepare()
    with run_dir.locked():
        _check_not_running(run_dir)
        run_dir.clear()
        run_dir.prepare()
        check_space(models, run_dir.root)
        models = with_other_ranks(models, options.ranks, run_dir.staged, hosts=options.hosts)
        meeting = meeting_environment(
            models,
            address=options.group_address,
            ports=options.group_ports,
            secret_file=options.secret_file or run_dir.secret_file,
        )
        settings = server_settings(
            base_config(options.ts_config),
            model_store=options.model_store.resolve(),
            ports=options.ports,
            token_auth=options.token_auth,
            workers=options.workers,
            models=models,
        )
        ready = _ready_address(options)
        try:
            return _start(run_dir, java, options, settings, models, meeting, ready, tell)
        except BaseException:
            # Ctrl-C too: half a server is of no use, and would hold the ports.
            stop_processes(run_dir)
            run_dir.clear()
            raise


def _start(
    run_dir: RunDir,
    java: Path,
    options: ServeOptions,
    settings: ServerSettings,
    models: list[ServedModel],
    meeting: Mapping[str, str],
    ready: Address | None,
    tell: Callable[[Progress], None],
) -> RunningServer:
    deadline = time.monotonic() + options.timeout
    marks = LogMarks.now(run_dir)
    tmp = run_dir.make_tmp()
    environment = launch_environment(
        run_dir, java=java, tmp=tmp, log_level=options.log_level, access_log=options.access_log
    )
    environment |= meeting
    store = options.model_store.resolve()
    process = launch(run_dir, settings=settings, models=models, model_store=store, environment=environment)
    state = ServerState(
        pid=process.pid,
        started=process.create_time(),
        inference=settings.inference.url,
        management=settings.management.url,
        metrics=settings.metrics.url,
        grpc_inference=settings.grpc_inference.target,
        grpc_management=settings.grpc_management.target,
        token_auth=settings.token_auth,
        models=tuple(model.name for model in models),
        model_store=str(store),
        tmp=str(tmp),
        ready="" if ready is None else ready.listen,
        drain_seconds=options.drain_seconds,
        drain_delay=options.drain_delay,
    )
    run_dir.write_state(state)
    if ready is not None:
        # Before the models are loaded: whoever asks is told why the server is not ready.
        launch_sidecar(run_dir)
    logger.info("TorchServe runs as pid %d with settings of %s", process.pid, settings.base)
    with management_client(run_dir, state) as client:
        try:
            wait_for_server(state, client, marks, deadline)
            workers = wait_for_models(
                client, models, marks=marks, workers=options.workers, deadline=deadline, tell=tell
            )
        except ServingError as error:
            # It listens to the management API before it finds that another port is taken.
            raise why_ended(state, marks) or error from None
    _check_ping(run_dir, state)
    return RunningServer(run_dir=run_dir, state=state, workers=workers)


def stop_server(
    path: Path,
    *,
    drain_seconds: float | None = None,
    drain_delay: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> int:
    """End the server of the run directory at ``path`` with its workers, as ``dlrm stop`` does.

    The server first says that it is not ready, for ``drain_delay`` seconds in which it answers as before; then it
    takes no new request and answers those that have come; then it ends.

    Args:
        path: the run directory.
        drain_seconds: to answer what has come; what then waits gets a 503. None for what the server was started with.
        drain_delay: seconds between the first and the second step; None likewise.
        tell: called with what is waited for.

    Returns:
        The number of processes ended; 0 if no server runs there.

    Raises:
        ServingError: a process does not end.
    """
    run_dir = RunDir.at(path)
    state = run_dir.read_state()
    if state is not None and is_running(state):
        _drain(
            run_dir,
            state,
            seconds=state.drain_seconds if drain_seconds is None else drain_seconds,
            delay=state.drain_delay if drain_delay is None else drain_delay,
            tell=tell,
        )
    # First, so that whoever watches the server knows that its end is meant.
    run_dir.state_file.unlink(missing_ok=True)
    ended = stop_processes(run_dir)
    left = server_processes(run_dir)
    if left:
        raise ServingError(f"these processes do not end: {', '.join(str(process.pid) for process in left)}")
    run_dir.clear(state)
    return ended


def _drain(
    run_dir: RunDir, state: ServerState, *, seconds: float, delay: float, tell: Callable[[str], None]
) -> None:
    """Drain the server; a server that answers no more has nothing to be waited for. An interrupt ends the wait."""
    try:
        run_dir.draining_file.touch()
        end = time.monotonic() + delay
        while (left := end - time.monotonic()) > 0 and is_running(state):
            tell(f"not ready, and answering for {left:.0f} s more")
            time.sleep(min(left, _DELAY_STEP_S))
        with management_client(run_dir, state, timeout=_ANSWER_S) as client:
            if not drain_models(client, temporary=Path(state.tmp), seconds=seconds, tell=tell):
                logger.warning(
                    "Requests were left after %g s, and turned away; more time: --drain-seconds", seconds
                )
    except (ServingError, OSError) as error:
        logger.warning("The server could not be drained: %s", error)
    except KeyboardInterrupt:
        logger.warning("The server is ended without waiting")


def running_server(path: Path) -> ServerState | None:
    """The server of the run directory at ``path``; None when none runs, also when it died without a word."""
    state = RunDir.at(path).read_state()
    return state if state is not None and is_running(state) else None


def _check_not_running(run_dir: RunDir) -> None:
    state = running_server(run_dir.root)
    if state is not None:
        raise ServingError(
            f"a server already runs in {run_dir.root} (pid {state.pid}, {state.inference}); stop it with "
            "`dlrm stop`, or give this one another --run-dir"
        )
    # Workers of a server that was killed: they would hold memory, and their sockets the names of ours.
    if stop_processes(run_dir):
        logger.warning("ended the workers that a killed server left in %s", run_dir.root)


def _check_ping(run_dir: RunDir, state: ServerState) -> None:
    auth = KeyFileAuth(run_dir.key_file, "inference", state.management) if state.token_auth else None
    with http_client(state.inference, auth, timeout=30.0) as client:
        try:
            response = client.get("/ping")
        except httpx.TransportError as error:
            raise ServingError(
                f"the workers are ready, but {state.inference}/ping does not answer: {error}"
            ) from error
    if not response.is_success:
        raise ServingError(
            f"the workers are ready, but {state.inference}/ping answers HTTP {response.status_code}"
        )


def _ready_address(options: ServeOptions) -> Address | None:
    if options.ready_port is None:
        return None
    check_free(options.ready_host, options.ready_port, "readiness", "--ready-port")
    port = options.ready_port or free_ports(1, options.ready_host)[0]
    return Address(host=options.ready_host, port=port)
