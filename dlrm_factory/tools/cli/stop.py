"""``dlrm stop``: end the server of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dlrm_factory.tools.server import RunDir, stop_server

__all__ = ["stop"]


def stop(
    run_dir: Annotated[Path, typer.Option(help="The run directory given to `dlrm serve`.")] = Path(".dlrm"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Stop the server and all its workers."""
    ended = stop_server(run_dir)
    root = RunDir.at(run_dir).root
    if as_json:
        typer.echo(json.dumps({"stopped": ended > 0, "processes": ended, "run_dir": str(root)}))
    elif ended:
        typer.echo(f"stopped: {ended} process{'' if ended == 1 else 'es'} of {root}")
    else:
        typer.echo(f"nothing to stop: no server runs in {root}")
