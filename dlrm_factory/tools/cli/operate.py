"""``dlrm ready``: what a person on call, or a probe, asks of a running server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dlrm_factory.tools.server import health_of

__all__ = ["ready"]

_POLL_S = 0.5


def ready(
    run_dir: Annotated[Path, typer.Option(help="The run directory given to `dlrm serve`.")] = Path(".dlrm"),
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the readiness as JSON.")] = False,
) -> None:
    """Tell whether requests may be sent: exit status 0 if so, else 1 and the reason."""
    end = time.monotonic() + wait
    found = health_of(run_dir)
    while not found.ready and time.monotonic() < end:
        time.sleep(min(_POLL_S, max(end - time.monotonic(), 0)))
        found = health_of(run_dir)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
    elif found.ready:
        parts = [f"{each.model} {each.version}: {each.ready} of {each.needed}" for each in found.models]
        typer.echo(f"ready: {', '.join(parts)} workers")
    else:
        typer.echo(f"not ready: {found.reason}")
    if not found.ready:
        raise typer.Exit(1)
