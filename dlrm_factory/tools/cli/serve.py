"""``dlrm serve``, ``stop`` and ``scale``: TorchServe with the models of a model store."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from dlrm_factory.errors import ServingError
from dlrm_factory.rendezvous import DEFAULT_PORTS
from dlrm_factory.tools.cli.interrupts import interruptible
from dlrm_factory.tools.cli.progress import WorkerWait
from dlrm_factory.tools.server import (
    RunDir,
    RunningServer,
    ServeOptions,
    running_server,
    scale_workers,
    start_server,
    stop_server,
)
from dlrm_factory.tools.sidecar.autoscaling import AutoscaleSettings, autoscale_model, read_settings

__all__ = [
    "scale",
    "serve",
    "stop",
]

_PORT = "0 picks a free one."


def serve(
    model_store: Annotated[Path, typer.Option(help="Folder of the archives.")] = Path("model_store"),
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ARCHIVE",
            help="What to load: an archive or folder of the store. Repeat it, or part several by "
            "commas; `all` loads everything there. Default: dlrm=dlrm.mar.",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help=f"Predictions. {_PORT} Default: 8080.")] = None,
    management_port: Annotated[int | None, typer.Option(help=f"Management. {_PORT} Default: 8081.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help=f"Metrics. {_PORT} Default: 8082.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC predictions. Default: any free port.")] = None,
    grpc_management_port: Annotated[
        int | None, typer.Option(help="gRPC management. Default: any free port.")
    ] = None,
    no_token_auth: Annotated[
        bool, typer.Option("--no-token-auth", help="Answer requests without a token.")
    ] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until Ctrl-C, then stop the server.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of each model. Default: as the archive says.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Processes of each worker. Default: as the archive says.")
    ] = None,
    hosts: Annotated[
        int | None, typer.Option(min=1, help="Hosts that --ranks are spread over. Default: this one.")
    ] = None,
    group_address: Annotated[
        str | None, typer.Option(help="This host's address in the network of a group's other hosts.")
    ] = None,
    group_ports: Annotated[
        str, typer.Option(metavar="FIRST-LAST", help="Where `dlrm join` finds groups, one port each.")
    ] = DEFAULT_PORTS,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            help="Secret that all hosts of a group have. Default: group.secret of the run directory."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until the models must be ready.")] = 600.0,
    ready_port: Annotated[
        int | None,
        typer.Option(help=f"Readiness for probes: GET /ready and /live. {_PORT} Default: none."),
    ] = None,
    ready_host: Annotated[str, typer.Option(help="Address of --ready-port.")] = "127.0.0.1",
    autoscale: Annotated[
        str | None,
        typer.Option(metavar="MIN:MAX", help="Let the workers of each model follow the queue time."),
    ] = None,
    queue_ms: Annotated[
        float | None,
        typer.Option(
            help="For --autoscale: mean time in the queue above which a worker is added. Default: 5."
        ),
    ] = None,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="To answer what has come, when the server is stopped.")
    ] = 30.0,
    drain_delay: Annotated[
        float, typer.Option(min=0, help="Seconds to be not ready, and to answer, before that.")
    ] = 0.0,
    run_dir: Annotated[Path, typer.Option(help="Folder for tokens, logs and state.")] = Path(".dlrm"),
    ts_config: Annotated[
        Path | None,
        typer.Option(help="Settings to start from. Default: ./config.properties, else the ones that ship."),
    ] = None,
    log_level: Annotated[
        Literal["warn", "info", "debug"], typer.Option(help="Of TorchServe's own messages.")
    ] = "warn",
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Write one line a request to logs/access_log.log.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print addresses and pid as JSON.")] = False,
) -> None:
    """Serve models with TorchServe; returns when they answer."""
    scaling = _autoscaling(autoscale, queue_ms)
    options = ServeOptions(
        model_store=model_store,
        models=tuple(spec for each in models or ["dlrm=dlrm.mar"] for spec in each.split(",") if spec),
        run_dir=run_dir,
        ports={
            "inference_address": port,
            "management_address": management_port,
            "metrics_address": metrics_port,
            "grpc_inference_port": grpc_port,
            "grpc_management_port": grpc_management_port,
        },
        ts_config=ts_config,
        token_auth=not no_token_auth,
        workers=workers,
        ranks=ranks,
        hosts=hosts,
        group_address=group_address,
        group_ports=group_ports,
        secret_file=secret_file,
        timeout=timeout,
        log_level=log_level,
        access_log=access_log,
        ready_port=ready_port,
        ready_host=ready_host,
        drain_seconds=drain_seconds,
        drain_delay=drain_delay,
    )
    with interruptible():
        server = _start(options)
        if scaling is not None:
            _autoscale(server, scaling)
        if as_json:
            typer.echo(json.dumps(_summary(server, scaling), indent=2))
        else:
            _describe(server, run_dir, scaling)
        if foreground:
            _stay(server)


def _start(options: ServeOptions) -> RunningServer:
    console = Console(stderr=True)
    with console.status("starting TorchServe") as status:
        return start_server(options, WorkerWait(console, status))


def _autoscaling(text: str | None, queue_ms: float | None) -> AutoscaleSettings | None:
    """Settings of ``MIN:MAX``, or of ``MAX`` alone."""
    if text is None:
        if queue_ms is not None:
            raise typer.BadParameter(
                f"--queue-ms {queue_ms:g} is for --autoscale, which is not given: add --autoscale MIN:MAX"
            )
        return None
    match = re.fullmatch(r"(?:(\d+):)?(\d+)", text.strip())
    if match is None:
        raise typer.BadParameter(f'--autoscale "{text}" is not MIN:MAX, as in 1:4')
    bounds = {"min_workers": int(match[1] or 1), "max_workers": int(match[2])}
    return AutoscaleSettings(**bounds) if queue_ms is None else AutoscaleSettings(**bounds, queue_ms=queue_ms)


def _autoscale(server: RunningServer, settings: AutoscaleSettings) -> None:
    """Scale every model from now on. The server is stopped where that cannot be: the command has failed then."""
    root = server.run_dir.root
    try:
        for model in server.workers:
            warning = autoscale_model(settings, model=model, run_dir=root)
            if warning:
                typer.echo(f"warning: {model}: {warning}", err=True)
    except BaseException:
        stop_server(root, drain_seconds=0, drain_delay=0)
        raise


def _summary(server: RunningServer, scaling: AutoscaleSettings | None) -> dict[str, Any]:
    return {
        "inference": server.state.inference,
        "management": server.state.management,
        "metrics": server.state.metrics,
        "grpc_inference": server.state.grpc_inference,
        "grpc_management": server.state.grpc_management,
        "token_file": str(server.token_file) if server.token_file else None,
        "ready": server.state.ready or None,
        "autoscale": None if scaling is None else msgspec.to_builtins(scaling),
        "pid": server.state.pid,
        "models": server.workers,
        "run_dir": str(server.run_dir.root),
        "logs": str(server.run_dir.logs),
    }


def _describe(server: RunningServer, run_dir: Path, scaling: AutoscaleSettings | None) -> None:
    state = server.state
    for name, count in server.workers.items():
        typer.echo(f"{name}: {count} worker{'' if count == 1 else 's'} ready")
    if scaling is not None:
        typer.echo(
            f"autoscale   {scaling.min_workers} to {scaling.max_workers} workers a model, by a queue time of "
            f"{scaling.queue_ms:g} ms"
        )
    typer.echo(f"inference   {state.inference}")
    typer.echo(f"management  {state.management}")
    typer.echo(f"metrics     {state.metrics}/metrics")
    typer.echo(f"gRPC        {state.grpc_inference}, management {state.grpc_management}")
    if state.ready:
        typer.echo(f"readiness   {state.ready}/ready")
    typer.echo(f"tokens      {server.token_file or 'off: whoever reaches the ports may use them'}")
    typer.echo(f"logs        {server.run_dir.logs}")
    other = "" if run_dir == Path(".dlrm") else f" --run-dir {run_dir}"
    typer.echo(
        f"\nTry it:  dlrm predict request.json --model {state.models[0]}{other}\nor:      {_curl(server)}"
    )
    typer.echo(f"Stop it: dlrm stop{other}")


def _curl(server: RunningServer) -> str:
    url = f"{server.state.inference}/predictions/{server.state.models[0]}"
    head = "-H 'Content-Type: application/json'"
    if server.token_file:
        read = f'import json; print(json.load(open("{server.token_file}"))["inference"]["key"])'
        head += f" \\\n           -H \"Authorization: Bearer $(python3 -c '{read}')\""
    return f"curl {url} {head} \\\n           -d @request.json"


def _stay(server: RunningServer) -> None:
    """Shows what TorchServe prints until Ctrl-C, SIGTERM, or the end of the server."""
    root = server.run_dir.root
    try:
        with server.run_dir.console_log.open(encoding="utf-8", errors="replace") as log:
            log.seek(0, 2)
            while running_server(root) is not None:
                typer.echo(log.read(), nl=False, err=True)
                time.sleep(0.3)
    except KeyboardInterrupt:
        typer.echo("stopping", err=True)
        stop_server(root, tell=_Told())
        return
    if server.run_dir.read_state() is not None:
        stop_server(root)
        raise ServingError(f"TorchServe ended by itself; see {server.run_dir.logs}")
    typer.echo("stopped by `dlrm stop`", err=True)


class _Told:
    """Writes each line that differs from the one before, at most one a second."""

    def __init__(self) -> None:
        self._last, self._due = "", 0.0

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if line != self._last and now >= self._due:
            self._last, self._due = line, now + 1.0
            typer.echo(line, err=True)


def stop(
    run_dir: Annotated[Path, typer.Option(help="The run directory given to `dlrm serve`.")] = Path(".dlrm"),
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="To answer what has come; what then waits gets a 503. Default: as `dlrm serve` says."
        ),
    ] = None,
    drain_delay: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds to be not ready, and to answer, before. Default: as `dlrm serve` says."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Drain and stop the server and all its workers."""
    with interruptible():
        ended = stop_server(run_dir, drain_seconds=drain_seconds, drain_delay=drain_delay, tell=_Told())
    root = RunDir.at(run_dir).root
    if as_json:
        typer.echo(json.dumps({"stopped": ended > 0, "processes": ended, "run_dir": str(root)}))
    elif ended:
        typer.echo(f"stopped: {ended} process{'' if ended == 1 else 'es'} of {root}")
    else:
        typer.echo(f"nothing to stop: no server runs in {root}")


def scale(
    workers: Annotated[int, typer.Argument(min=0, help="Workers to have.")],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "dlrm",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until they must be ready.")] = 600.0,
    run_dir: Annotated[Path, typer.Option(help="The run directory given to `dlrm serve`.")] = Path(".dlrm"),
    url: Annotated[str | None, typer.Option(help="Management address of another server.")] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DLRM_MANAGEMENT_TOKEN", help="Management token. Default: that of the run directory."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Change the number of workers; returns when exactly so many are ready."""
    console = Console(stderr=True)
    with console.status(escape(f"{model}: asking for {workers} workers")) as status:
        done = scale_workers(
            workers,
            model=model,
            run_dir=run_dir,
            url=url,
            token=token,
            timeout=timeout,
            tell=WorkerWait(console, status),
        )
    if model in read_settings(RunDir.at(run_dir)):
        typer.echo(f"warning: {model} is scaled by queue time too, until `dlrm autoscale --off`", err=True)
    if done.oversubscription:
        typer.echo(f"warning: {model}: {done.oversubscription}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    typer.echo(f"{model}: {done.after} worker{'' if done.after == 1 else 's'} ready (before: {done.before})")
    if workers == 0:
        typer.echo(f"warning: {model} now answers every request with 503, until you scale it up", err=True)
