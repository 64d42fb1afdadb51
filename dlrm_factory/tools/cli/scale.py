"""``dlrm scale``: change the number of workers of a running model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dlrm_factory.tools.cli.crowding import crowding
from dlrm_factory.tools.cli.waiting import WorkerWait
from dlrm_factory.tools.client.addresses import is_loopback
from dlrm_factory.tools.server import (
    Drain,
    Endpoint,
    LogMarks,
    ManagementClient,
    Scaled,
    ServerState,
    find_endpoint,
    probe_of,
    running_server,
    scale_model,
)

__all__ = ["scale"]


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
    endpoint = find_endpoint("management", run_dir=run_dir, url=url, token=token)
    marks = LogMarks.now(endpoint.local) if endpoint.local else None
    state = running_server(run_dir) if endpoint.local else None
    with ManagementClient(endpoint.url, endpoint.auth) as client:
        done = _scale(client, model, workers, marks, timeout, _drain(endpoint, run_dir, model, state))
        crowded = state and crowding(Path(state.model_store) / client.archive(model), workers)
    if crowded:
        typer.echo(f"warning: {model}: {crowded}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    typer.echo(f"{model}: {done.after} worker{'' if done.after == 1 else 's'} ready (before: {done.before})")
    if workers == 0:
        typer.echo(f"warning: {model} now answers every request with 503, until you scale it up", err=True)


def _scale(
    client: ManagementClient,
    model: str,
    workers: int,
    marks: LogMarks | None,
    timeout: float,
    drain: Drain | None,
) -> Scaled:
    console = Console(stderr=True)
    with console.status(escape(f"{model}: asking for {workers} workers")) as status:
        tell = WorkerWait(console, status)
        return scale_model(client, model, workers, marks=marks, timeout=timeout, tell=tell, drain=drain)


def _drain(endpoint: Endpoint, run_dir: Path, model: str, state: ServerState | None) -> Drain | None:
    if state is None:
        # A plain `torchserve` of this machine keeps its files where every program does.
        return Drain() if is_loopback(endpoint.url) else None
    inference = find_endpoint("inference", run_dir=run_dir, url=None, token=None)
    return Drain(temporary=Path(state.tmp), probe=probe_of(inference, model))
