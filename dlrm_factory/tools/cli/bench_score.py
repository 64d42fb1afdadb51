"""``dlrm bench score``: batch → logits, compiled against eager."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from dlrm_factory.config import criteo
from dlrm_factory.tools.cli.declarations import declaration_of

__all__ = ["score"]


def score(
    config: Annotated[
        str | None,
        typer.Argument(help="A declaration or preset. [default: criteo, 100,000 rows a table at most]"),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes; repeat it.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each batch size.")] = 2.0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    precision: Annotated[
        Literal["fp32", "bf16"] | None, typer.Option(help="Of the compiled parts. [default: the CPU's best]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the scorer: compiled against the eager sharded model, and the raw operations beside them."""
    from dlrm_factory.compiled import best_precision
    from dlrm_factory.tools.bench.score import measure_scores

    declaration = declaration_of(config) if config else criteo(cap=100_000)
    console = Console(stderr=True)
    with console.status("preparing") as status:
        timings = measure_scores(
            declaration,
            batches=batch or [1, 16, 128, 512, 2048],
            seconds=seconds,
            threads=threads,
            precision=precision,
            observe=status.update,
        )
    used = precision or best_precision()
    if as_json:
        rows = [{**asdict(timing), "ratio": timing.ratio, "precision": used} for timing in timings]
        typer.echo(jsonlib.dumps(rows, indent=2))
        return
    table = Table(
        "batch", "eager", "compiled", "lookup alone", "raw operations", "compiled samples/s", "x eager"
    )
    for timing in timings:
        rate = "-" if timing.compiled is None else f"{1e3 * timing.batch / timing.compiled:,.0f}"
        table.add_row(
            str(timing.batch),
            *(_ms(value) for value in (timing.eager, timing.compiled, timing.lookup, timing.limit)),
            rate,
            "-" if timing.ratio is None else f"{timing.ratio:.1f}",
        )
    Console().print(table)
    differences = [timing.difference for timing in timings if timing.difference is not None]
    tail = (
        f"; probabilities differ by {max(differences):.1e} at most"
        if differences
        else "; nothing was compiled"
    )
    typer.echo(f"medians, {threads} thread{'s' if threads > 1 else ''}, {used}{tail}")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} ms"
