"""``dlrm bench ranks``: groups of ranks against one process."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from dlrm_factory.config import criteo
from dlrm_factory.tools.cli.declarations import declaration_of

__all__ = ["ranks"]


def ranks(
    config: Annotated[
        str | None,
        typer.Argument(help="A declaration or preset. [default: criteo, 100,000 rows a table at most]"),
    ] = None,
    group: Annotated[
        list[int] | None, typer.Option(min=1, help="Processes of a group; repeat it. [default: 1, 2]")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes; repeat it. [default: 1, 64, 512, 2048]")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each batch size of each group.")] = 2.0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch, in each process.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile/--eager", help="Whether the dense parts are compiled.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time groups of ranks on this host against one process without a group, in turn, and the parts of a batch."""
    from dlrm_factory.tools.bench.ranks import measure_ranks

    declaration = declaration_of(config) if config else criteo(cap=100_000)
    with Console(stderr=True).status("preparing") as status:
        timings = measure_ranks(
            declaration,
            groups=group or [1, 2],
            batches=batch or [1, 64, 512, 2048],
            seconds=seconds,
            threads=threads,
            compiled=compiled,
            observe=status.update,
        )
    if as_json:
        rows = [{**asdict(timing), "samples_per_s": timing.samples_per_s} for timing in timings]
        typer.echo(jsonlib.dumps(rows, indent=2))
        return
    headers = (
        "ranks", "batch", "alone", "p50", "p99", "samples/s", "scatter", "lookup", "dense", "gather", "ping",
        "bytes out", "bytes in",
    )  # fmt: skip
    table = Table(*(Column(header, no_wrap=True, justify="right") for header in headers))
    for timing in timings:
        parts = (timing.scatter, timing.lookup, timing.dense, timing.gather, timing.ping)
        table.add_row(
            str(timing.ranks),
            str(timing.batch),
            *(f"{value:.2f}" for value in (timing.alone, timing.p50, timing.p99)),
            f"{timing.samples_per_s:,.0f}",
            *(f"{value:.2f}" for value in parts),
            *(f"{value:,.0f}" for value in (timing.scattered, timing.gathered)),
        )
    Console().print(table)
    engines = " and ".join(sorted({timing.engine for timing in timings}))
    typer.echo(
        f"medians in milliseconds, {threads} thread{'s' if threads > 1 else ''} a process, {engines}; alone: one "
        "process without a group; lookup: with TorchRec's exchange; bytes: a sample, by scatter and gather"
    )
