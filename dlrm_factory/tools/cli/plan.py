"""``dlrm plan``: the place of each table."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from dlrm_factory.config import format_bytes
from dlrm_factory.config.checks import problems_of
from dlrm_factory.errors import ConfigError, PlanError, near_matches
from dlrm_factory.tools.cli.declarations import declaration_of

if TYPE_CHECKING:
    from dlrm_factory.config import DLRMDeclaration
    from dlrm_factory.model.plan import PlacedTable, TablePlan
    from dlrm_factory.ranks.traffic import Traffic
    from dlrm_factory.tools.capacity import Deployment, ServingCosts, ServingHosts

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
    traffic: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            help="Samples/s to serve: print what the hosts can do, and what limits them. "
            "Without --world-size and --hosts, find how many hosts it takes.",
        ),
    ] = None,
    network: Annotated[str, typer.Option(help="Of each host, for --traffic.")] = "25Gbit",
    cores: Annotated[int, typer.Option(min=1, help="Of each host, for --traffic.")] = 16,
    batch: Annotated[int, typer.Option(min=1, help="Samples scored at once, for --traffic.")] = 512,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=NUMBER, your own measurement for --traffic; may be repeated: "
            "request_us, gflops, lookup_ns, copy_ns, message_us."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    image: Annotated[Path | None, typer.Option(help="Also draw the plan: a .svg, .png or .pdf file.")] = None,
) -> None:
    """Print where TorchRec's planner puts each table, on hardware that need not be here, and what crosses between."""
    options = {
        "world_size": world_size,
        "hosts": hosts,
        "device": device,
        "memory": memory,
        "replicate_below": replicate_below,
    }
    declared = _changed(declaration_of(config), options)
    if traffic is not None and training:
        raise PlanError("--traffic is of serving; leave out --training")
    if traffic is not None and declared.sharding.device == "cuda":
        raise PlanError("--traffic knows the times of CPUs alone; give --device cpu")

    from dlrm_factory.factory import DLRMFactory
    from dlrm_factory.model.hardware import hardware_of
    from dlrm_factory.tools.capacity import (
        Deployment,
        ServingHosts,
        capacity_of,
        hosts_for,
        parse_network,
        traffic_of,
    )

    costs, host = _costs(cost or []), ServingHosts(cores=cores, network=parse_network(network), batch=batch)
    deployment: Deployment | None = None
    if traffic is not None and world_size is None and hosts is None and declared.sharding.world_size == 1:
        per_rank = hardware_of(declared.sharding).memory
        deployment = hosts_for(declared, traffic, memory=per_rank, host=host, costs=costs)
        made = deployment.plan
    else:
        made = DLRMFactory(declared).plan(mode="float" if training else "quantized")
        if traffic is not None:
            capacity = capacity_of(made, declared, host=host, costs=costs)
            deployment = Deployment(sets=1, plan=made, capacity=capacity)
    crossing = {} if training else traffic_of(made, declared)
    if json:
        found = made.to_dict()
        if crossing:
            found["traffic"] = {name: {**vars(each), "total": each.total} for name, each in crossing.items()}
        if deployment is not None and traffic is not None:
            found["capacity"] = deployment.to_dict(traffic) | {"host": vars(host), "costs": vars(costs)}
        print(jsonlib.dumps(found, indent=2))
    else:
        console = Console(width=None if Console().is_terminal else 120)
        _print(console, made, crossing)
        if deployment is not None and traffic is not None:
            _print_capacity(console, deployment, traffic, host, costs)
    if image is not None:
        from dlrm_factory.tools.plan_picture import draw_plan

        draw_plan(made, image, crossing)
        if not json:
            print(f"picture: {image}")


def _changed(declaration: DLRMDeclaration, options: Mapping[str, object]) -> DLRMDeclaration:
    """``declaration`` with the options that are given."""
    changes = {name: value for name, value in options.items() if value is not None}
    if not changes:
        return declaration
    kind = type(declaration.sharding)
    sharding = msgspec.convert({**msgspec.to_builtins(declaration.sharding), **changes}, kind)
    changed = msgspec.structs.replace(declaration, sharding=sharding)
    if problems := problems_of(changed):
        raise ConfigError(problems)
    return changed


def _costs(given: list[str]) -> ServingCosts:
    from dlrm_factory.tools.capacity import ServingCosts

    costs: dict[str, float] = {}
    names = list(ServingCosts.__dataclass_fields__)
    for each in given:
        name, _, number = each.partition("=")
        if name not in names:
            raise PlanError(
                f'"{each}": there is no cost "{name}"{near_matches(name, names)}; costs: {", ".join(names)}'
            )
        try:
            costs[name] = float(number)
        except ValueError:
            raise PlanError(f'"{each}": "{number}" is not a number; write e.g. {name}=1.5') from None
    return ServingCosts(**costs)


def _print(console: Console, plan: TablePlan, crossing: dict[str, Traffic]) -> None:
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
    ranks = Table("rank", "host", "bytes", "of its memory", "rows read a sample")
    for rank, (size, lookups) in enumerate(zip(plan.rank_bytes(), plan.rank_lookups(), strict=True)):
        share = f"{100 * size / hardware.memory:.1f} %"
        host = str(rank // hardware.local_world_size)
        ranks.add_row(str(rank), host, format_bytes(size), share, f"{lookups:.2f}")
    console.print(ranks)
    console.print(f"balance: the fullest rank holds {plan.balance():.2f} times the mean")
    if hardware.world_size > 1 and crossing:
        _print_traffic(console, crossing)


def _print_traffic(console: Console, crossing: dict[str, Traffic]) -> None:
    vectors = ["pooled vectors"]
    if any(each.sequences for each in crossing.values()):
        vectors.append("vectors of sequences")
    traffic = Table("bytes a sample", "ids", "dense features", *vectors, "logits", "in all")
    for name, each in crossing.items():
        parts = (
            each.ids,
            each.dense,
            *(each.pooled, each.sequences)[: len(vectors)],
            each.logits,
            each.total,
        )
        traffic.add_row(f"between {name}", *(f"{size:,.1f}" for size in parts))
    console.print(traffic)


def _print_capacity(
    console: Console, deployment: Deployment, rate: float, host: ServingHosts, costs: ServingCosts
) -> None:
    from dlrm_factory.tools.capacity import FORMULA

    capacity = deployment.capacity
    parts = Table(f"of {capacity.hosts} hosts the busiest", "a sample", "samples/s of all hosts")
    for name, time in capacity.parts.items():
        most = f"{1e6 * host.cores / time:,.0f}" if time else "-"
        parts.add_row(f"core time: {name}", f"{time:.3f} µs", most)
    total = f"{sum(capacity.parts.values()):.3f} µs"
    parts.add_row(f"{host.cores} cores", total, f"{capacity.cores_limit:,.0f}")
    wire = f"{capacity.network_limit:,.0f}" if capacity.bytes_out else "-"
    parts.add_row(f"network: {host.network / 1e9:g} Gbit/s", f"{capacity.bytes_out:,.1f} B out", wire)
    console.print(parts)
    console.print(
        f"{_counted(capacity.hosts, 'host serves', 'hosts serve')} {capacity.samples_per_s:,.0f} samples/s; "
        f"the limit is {capacity.limit}. {format_bytes(capacity.bytes)} of tables a host. "
        f"{_counted(capacity.groups, 'group', 'groups')} at once, {capacity.batch_ms:.1f} ms a batch of {host.batch}."
    )
    if deployment.sets > 1:
        console.print(
            f"{deployment.sets} such sets, {deployment.hosts} hosts in all, serve {deployment.samples_per_s:,.0f}."
        )
    load, p99 = rate / deployment.samples_per_s, deployment.p99_ms(rate)
    console.print(
        f"At {rate:,.0f} samples/s: load {load:.0%}, p99 of a batch "
        + (f"{p99:.1f} ms." if load < 1 else "without a bound: that is more than they serve.")
    )
    if deployment.lacking == "memory":
        console.print("Fewer hosts cannot hold the tables.")
    console.print("\nThe formula:\n" + FORMULA, highlight=False)
    console.print("with " + ", ".join(f"{name} {value:g}" for name, value in vars(costs).items()))


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


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
