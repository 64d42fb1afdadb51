"""``dlrm verify``: an archive's weights, checked without a server."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dlrm_factory.verification import Verification

__all__ = ["verify"]


def verify(
    archive: Annotated[Path, typer.Argument(help="A .mar, or a folder of an archive or of sealed weights.")],
    max_auc_loss: Annotated[
        float, typer.Option(min=0, help="The most AUC that serving may lose against the trained model.")
    ] = 0.0005,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check an archive: every table's checksum, and how far served scores are from trained ones."""
    from dlrm_factory.archive import unpacked_weights
    from dlrm_factory.verification import verify_weights

    console = Console(stderr=True)
    with unpacked_weights(archive) as folder, console.status(f"verifying {archive}"):
        found = verify_weights(folder)
    if as_json:
        typer.echo(jsonlib.dumps(asdict(found), indent=2))
    else:
        _print(archive, found)
    found.check(max_auc_loss)


def _print(archive: Path, found: Verification) -> None:
    typer.echo(f"{archive}: {found.tables} tables agree with their checksums")
    if not found.engines:
        typer.echo("no held-out samples travel with it, so scores were not compared")
        return
    table = Table("", "AUC", "AUC lost", "log-loss", "mean difference", "max difference")
    table.add_row("as trained", f"{found.float_auc:.5f}", "", f"{found.float_log_loss:.5f}", "", "")
    for drift in found.engines:
        name = f"compiled, {found.precision}" if drift.engine == "compiled" else "eager, tables' dtypes"
        table.add_row(
            name,
            f"{drift.auc:.5f}",
            f"{drift.auc_loss:+.5f}",
            f"{drift.log_loss:.5f}",
            f"{drift.mean_difference:.1e}",
            f"{drift.max_difference:.1e}",
        )
    Console().print(table)
    typer.echo(f"over {found.samples:,} held-out samples; differences are of probabilities")
