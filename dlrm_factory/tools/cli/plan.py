"""``dlrm plan``: the place of each table."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from dlrm_factory.config import format_bytes
from dlrm_factory.config.checks import problems_of
from dlrm_factory.errors import ConfigError
from dlrm_factory.tools.cli.declarations import declaration_of

if TYPE_CHECKING:
    from dlrm_factory.model.plan import PlacedTable, TablePlan

__all__ = ["plan"]


def plan(
    config: Annotated[
        str, typer.Argument(help="A declaration (YAML file), or a preset: tiny, demo, criteo.")
    ],
    world_size: Annotated[int | None, typer.Option(help="Ranks in all.")] = None,
    hosts: Annotated[int | None, typer.Option(help="Machines the ranks are spread over.")] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="cpu or cuda. It need not be here.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory a rank has for tables, e.g. 80GB.")] = None,
    replicate_below: Annotated[
        str | None,
        typer.Option(help="Copy automatic tables below this to every rank, e.g. 64MB; 0 for none."),
    ] = None,
    training: Annotated[bool, typer.Option("--training", help="Plan the fp32 tables of training.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    image: Annotated[Path | None, typer.Option(help="Also draw the plan: a .svg, .png or .pdf file.")] = None,
) -> None:
    """Print where TorchRec's planner puts each table, on hardware that need not be here."""
    declared = declaration_of(config)
    options = {
        "world_size": world_size,
        "hosts": hosts,
        "device": device,
        "memory": memory,
        "replicate_below": replicate_below,
    }
    changes = {name: value for name, value in options.items() if value is not None}
    if changes:
        sharding = msgspec.convert(
            {**msgspec.to_builtins(declared.sharding), **changes}, type(declared.sharding)
        )
        declared = msgspec.structs.replace(declared, sharding=sharding)
        if problems := problems_of(declared):
            raise ConfigError(problems)

    from dlrm_factory.factory import DLRMFactory

    made = DLRMFactory(declared).plan(mode="float" if training else "quantized")
    if json:
        print(jsonlib.dumps(made.to_dict(), indent=2))
    else:
        _print(made)
    if image is not None:
        from dlrm_factory.tools.plan_picture import draw_plan

        draw_plan(made, image)
        if not json:
            print(f"picture: {image}")


def _print(plan: TablePlan) -> None:
    console = Console(width=None if Console().is_terminal else 120)
    hardware = plan.hardware
    console.print(
        f"{hardware.world_size} {hardware.device} {'rank' if hardware.world_size == 1 else 'ranks'} on "
        f"{hardware.hosts} {'host' if hardware.hosts == 1 else 'hosts'}, {format_bytes(hardware.memory)} a rank, "
        f"{'fp32 tables to train' if plan.mode == 'float' else 'tables to serve'}"
    )
    tables = Table("table", "rows x dim", "dtype", "pooling", "sharding", "kernel", "bytes", "where")
    for placed in plan.tables:
        tables.add_row(
            placed.name,
            f"{placed.num_embeddings} x {placed.embedding_dim}",
            placed.dtype,
            placed.pooling,
            placed.sharding,
            placed.kernel,
            format_bytes(placed.bytes),
            _where(placed, hardware.world_size),
        )
    console.print(tables)
    ranks = Table("rank", "host", "bytes", "of its memory")
    for rank, size in enumerate(plan.rank_bytes()):
        share = f"{100 * size / hardware.memory:.1f} %"
        ranks.add_row(str(rank), str(rank // hardware.local_world_size), format_bytes(size), share)
    console.print(ranks)
    console.print(f"balance: the fullest rank holds {plan.balance():.2f} times the mean")


def _where(placed: PlacedTable, world_size: int) -> str:
    ranks = sorted({shard.rank for shard in placed.shards})
    if placed.sharding == "data_parallel":
        return "a copy on every rank" if world_size > 1 else "rank 0"
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    part = "rows" if placed.sharding == "row_wise" else "columns"
    listed = (
        f"{ranks[0]}-{ranks[-1]}"
        if ranks == list(range(ranks[0], ranks[-1] + 1))
        else ",".join(map(str, ranks))
    )
    return f"{part} over ranks {listed}"
