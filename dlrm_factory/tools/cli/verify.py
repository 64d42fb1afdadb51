"""``dlrm verify``: an archive, proven without a server."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dlrm_factory.config import format_bytes
from dlrm_factory.tools.cli.quality_bounds import MaxAucLoss, MaxDifference, MaxDrift, MinOverlap
from dlrm_factory.tools.cli.waiting import telling_of_compiling

if TYPE_CHECKING:
    from dlrm_factory.tools.archive.group_replay import GroupReplay
    from dlrm_factory.tools.archive.verification import Verification

__all__ = ["verify"]


def verify(
    archive: Annotated[
        Path, typer.Argument(help="A .mar, a .tar.gz, or a folder of an archive or of sealed weights.")
    ],
    max_auc_loss: MaxAucLoss = 0.0005,
    max_drift: MaxDrift = 0.02,
    max_difference: MaxDifference = 0.02,
    min_overlap: MinOverlap = 0.9,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Replay the golden requests through a group of so many processes too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove an archive without a server: every file, its golden requests, served scores against trained ones."""
    from dlrm_factory.requests.replay import replay_with
    from dlrm_factory.tools.archive import check_archive, unpacked_weights
    from dlrm_factory.tools.archive.verification import verify_weights

    console = Console(stderr=True)
    group: GroupReplay | None = None
    with (
        unpacked_weights(archive) as folder,
        console.status(f"verifying {archive}"),
        telling_of_compiling(console),
    ):
        check_archive(archive, folder)
        found = verify_weights(folder, replay=replay_with)
        if ranks is not None:
            from dlrm_factory.tools.archive.group_replay import replay_in_group

            group = replay_in_group(folder, ranks)
    if as_json:
        plain = asdict(found) | ({} if group is None else {"group": asdict(group)})
        typer.echo(jsonlib.dumps(plain, indent=2))
    else:
        _print(archive, found)
        if group is not None:
            _print_group(group, found.precision)
    found.check(max_auc_loss, max_drift, max_difference=max_difference, min_overlap=min_overlap)


def _print(archive: Path, found: Verification) -> None:
    typer.echo(
        f"{archive}: {found.files} files agree with their seal, {found.tables} tables agree with their checksums"
    )
    for name, (then, now) in sorted(found.other_versions.items()):
        typer.echo(f"warning: made with {name} {then or '(none)'}, but {now or 'none'} is installed here")
    _print_goldens(found)
    _print_compiled(found)
    if not found.engines:
        typer.echo("no held-out samples travel with it, so its AUC was not compared")
        return
    table = Table("", "AUC", "AUC lost", "log-loss", "mean difference", "max difference")
    table.add_row("as trained", f"{found.float_auc:.5f}", "", f"{found.float_log_loss:.5f}", "", "")
    for drift in found.engines:
        table.add_row(
            _engine(drift.engine, found.precision),
            f"{drift.auc:.5f}",
            f"{drift.auc_loss:+.5f}",
            f"{drift.log_loss:.5f}",
            f"{drift.mean_difference:.1e}",
            f"{drift.max_difference:.1e}",
        )
    Console().print(table)
    typer.echo(f"over {found.samples:,} held-out samples; differences are of probabilities")


def _print_goldens(found: Verification) -> None:
    goldens = found.goldens
    if goldens is None:
        typer.echo("no golden requests travel with it, so its scores are not proven")
        return
    engines = "; ".join(
        f"{_engine(name, found.precision)} within {largest:.1e}" for name, largest in goldens.largest.items()
    )
    typer.echo(
        f"{goldens.requests} golden requests ({goldens.real} real) reproduced, alone and in a batch: {engines}"
    )
    if goldens.mean_drift is not None:
        typer.echo(
            f"their probabilities are {goldens.mean_drift:.1e} from the trained model's on average, "
            f"{goldens.max_drift:.1e} at most"
        )


def _print_group(group: GroupReplay, precision: str) -> None:
    table = Table(
        f"{group.ranks} ranks", "golden requests", "largest difference", title="one model, a group of ranks"
    )
    for name, largest in group.largest.items():
        table.add_row(_engine(name, precision), str(group.requests), f"{largest:.1e}")
    Console().print(table)
    kinds = Counter(group.shardings.values())
    placed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    held = ", ".join(format_bytes(size) for size in group.rank_bytes)
    typer.echo(f"tables: {placed}; bytes by rank: {held}")


def _print_compiled(found: Verification) -> None:
    compiled = found.compiled
    if compiled is None:
        return
    line = f"compiled scores ({found.precision}) are within {compiled.max_difference:.1e} of the eager probabilities"
    if compiled.top_10_overlap is not None:
        line += f", and {100 * compiled.top_10_overlap:.2f}% of the top 10 are the same, over {compiled.rankings:,} "
        line += "rankings of 100 held-out samples"
    typer.echo(line)


def _engine(name: str, precision: str) -> str:
    return f"compiled, {precision}" if name == "compiled" else name
