"""``dlrm join``: this host's ranks for the groups of another."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from dlrm_factory.rendezvous import DEFAULT_PORTS
from dlrm_factory.tools.join import JoinOptions, join_leader

__all__ = ["join"]


def join(
    leader: Annotated[str, typer.Option(help="The leader's --group-address.")],
    model_store: Annotated[
        Path, typer.Option("--model-store", "--store", help="Folder of the archives.")
    ] = Path("model_store"),
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ARCHIVE",
            help="Copies of the leader's archives, named as there. Repeat it, or part several by commas. "
            "Default: dlrm=dlrm.mar.",
        ),
    ] = None,
    secret_file: Annotated[
        Path, typer.Option(help="Copy of the leader's secret file, with mode 0600.")
    ] = Path(".dlrm/group.secret"),
    ports: Annotated[
        str, typer.Option(metavar="FIRST-LAST", help="The leader's --group-ports.")
    ] = DEFAULT_PORTS,
    address: Annotated[
        str | None,
        typer.Option(help="This host's address for the group. Default: the one towards the leader."),
    ] = None,
) -> None:
    """Serve ranks of this host for the groups of a leader, in the foreground; ends on Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    options = JoinOptions(
        leader=leader,
        model_store=model_store,
        models=tuple(spec for each in models or ["dlrm=dlrm.mar"] for spec in each.split(",") if spec),
        secret_file=secret_file,
        ports=ports,
        address=address,
    )
    join_leader(options, typer.echo, stop)
