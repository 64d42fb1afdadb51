"""``dlrm bench decode``: request bytes → tensors, against json.loads."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from dlrm_factory.config import criteo
from dlrm_factory.tools.cli.declarations import declaration_of

__all__ = ["decode"]


def decode(
    config: Annotated[
        str | None, typer.Argument(help="A declaration or preset, for its features. [default: criteo]")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="In one request.")] = 512,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each kind of body.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time request bytes → KeyedJaggedTensor, checks included, against json.loads of the same bytes alone."""
    from dlrm_factory.tools.bench.decode import measure_decoding

    declaration = declaration_of(config) if config else criteo()
    with Console(stderr=True).status("preparing") as status:
        timings = measure_decoding(declaration, samples=samples, seconds=seconds, observe=status.update)
    if as_json:
        typer.echo(jsonlib.dumps([{**asdict(timing), "ratio": timing.ratio} for timing in timings], indent=2))
        return
    headers = ("body", "bytes", "json.loads", "ours", "ratio", "to reach")
    table = Table(*(Column(header, no_wrap=True) for header in headers))
    for timing in timings:
        table.add_row(
            timing.body,
            f"{timing.size:,}",
            f"{timing.loads:.3f}",
            f"{timing.ours:.3f}",
            f"{timing.ratio:.2f}",
            "-" if timing.target is None else f"{timing.target:.0f}",
        )
    Console().print(table)
    dense, sparse = len(declaration.dense_features), len(declaration.sparse_features)
    typer.echo(
        f"median milliseconds, one thread; {samples} samples of {dense} dense and {sparse} sparse features"
    )
