"""``dlrm bench handle``: requests → answers in one process."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from dlrm_factory.config import criteo
from dlrm_factory.tools.cli.declarations import declaration_of

__all__ = ["handle"]


def handle(
    config: Annotated[
        str | None,
        typer.Argument(help="A declaration or preset. [default: criteo, 100,000 rows a table at most]"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each kind of work.")] = 2.0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile/--eager", help="Whether the dense parts are compiled.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time what the handler does with TorchServe's batches, bytes in and bytes out, without a server."""
    from dlrm_factory.tools.bench.handle import WORK, measure_handling

    declaration = declaration_of(config) if config else criteo(cap=100_000)
    # TorchServe's own shape holds rows alone.
    only_rows = all(
        feature.ids == "index" and not feature.weighted for feature in declaration.sparse_features
    )
    work = [each for each in WORK if only_rows or each.body_format != "torchserve"]
    with Console(stderr=True).status("preparing") as status:
        timings = measure_handling(
            declaration,
            seconds=seconds,
            threads=threads,
            compiled=compiled,
            work=work,
            observe=status.update,
        )
    if as_json:
        typer.echo(jsonlib.dumps([asdict(timing) for timing in timings], indent=2))
        return
    headers = (
        "requests x samples",
        "body",
        "bytes",
        "decode",
        "score",
        "encode",
        "total",
        "p99",
        "json alone",
        "fast",
    )
    table = Table(*(Column(header, no_wrap=True) for header in headers))
    for timing in timings:
        parts = (timing.decode, timing.score, timing.encode, timing.total, timing.slowest, timing.json)
        table.add_row(
            f"{timing.work.requests} x {timing.work.samples}",
            timing.work.body_format,
            f"{timing.size:,.0f}",
            *(f"{part:,.1f}" for part in parts),
            f"{timing.fast:.0%}",
        )
    Console().print(table)
    typer.echo(
        "microseconds of CPU time a request, medians; json alone: json.loads and json.dumps of the same; "
        "fast: requests that the fast readers read"
    )
