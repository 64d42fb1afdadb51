"""``dlrm bench``: the benchmarks; here those of parts, ``decode``, ``score``, ``handle``, and of groups, ``ranks``."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

from dlrm_factory.config import criteo
from dlrm_factory.tools.cli.bench_http import http
from dlrm_factory.tools.cli.bench_memory import memory
from dlrm_factory.tools.cli.declarations import declaration_of
from dlrm_factory.tools.cli.tables import wide_console
from dlrm_factory.tools.cli.trust import takes_code

__all__ = [
    "bench",
]

bench = typer.Typer(help="Measure the server, the workers' memory and the parts.", no_args_is_help=True)

CappedConfig = Annotated[
    str | None,
    typer.Argument(help="A declaration or preset. [default: criteo, 100,000 rows a table at most]"),
]
Compiled = Annotated[
    bool, typer.Option("--compile/--eager", help="Compile the dense parts, or score them eagerly.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def decode(
    config: Annotated[
        str | None, typer.Argument(help="A declaration or preset, for its features. [default: criteo]")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="In one request.")] = 512,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each kind of body.")] = 2.0,
    as_json: AsJson = False,
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


def score(
    config: CappedConfig = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes; repeat it.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each batch size.")] = 2.0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    precision: Annotated[
        Literal["fp32", "bf16"] | None, typer.Option(help="Of the compiled parts. [default: the CPU's best]")
    ] = None,
    as_json: AsJson = False,
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


def handle(
    config: CappedConfig = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each kind of work.")] = 2.0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    compiled: Compiled = True,
    as_json: AsJson = False,
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
        "metrics",
        "fast",
    )
    table = Table(*(Column(header, no_wrap=True) for header in headers))
    for timing in timings:
        parts = (
            timing.decode,
            timing.score,
            timing.encode,
            timing.total,
            timing.slowest,
            timing.json,
            timing.metrics,
        )
        table.add_row(
            f"{timing.work.requests} x {timing.work.samples}",
            timing.work.body_format,
            f"{timing.size:,.0f}",
            *(f"{part:,.1f}" for part in parts),
            f"{timing.fast:.0%}",
        )
    wide_console().print(table)
    typer.echo(
        "microseconds of CPU time a request, medians; json alone: json.loads and json.dumps of the same; "
        "fast: requests that the fast readers read"
    )


def ranks(
    config: CappedConfig = None,
    group: Annotated[
        list[int] | None, typer.Option(min=1, help="Processes of a group; repeat it. [default: 1, 2, 4]")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes; repeat it. [default: 1, 64, 512, 2048]")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each batch size of each group.")] = 2.0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch, in each process.")] = 1,
    compiled: Compiled = True,
    as_json: AsJson = False,
) -> None:
    """Time groups of ranks on this host against one process without a group, in turn, and the parts of a batch."""
    from dlrm_factory.tools.bench.ranks import measure_ranks

    declaration = declaration_of(config) if config else criteo(cap=100_000)
    with Console(stderr=True).status("preparing") as status:
        timings = measure_ranks(
            declaration,
            groups=group or [1, 2, 4],
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
        "ranks", "batch", "p50", "p99", "samples/s", "scatter", "lookup", "exchange", "dense", "gather", "ping",
        "bytes", "least", "ratio",
    )  # fmt: skip
    columns = (Column(header, no_wrap=True, justify="right") for header in headers)
    table = Table(*columns, padding=(0, 0), pad_edge=False)
    for timing in timings:
        alone = (
            f"{timing.alone:.2f}",
            f"{timing.alone_p99:.2f}",
            f"{1e3 * timing.batch / timing.alone:,.0f}",
        )
        table.add_row("alone", str(timing.batch), *alone)
        parts = (timing.scatter, timing.lookup, timing.exchange, timing.dense, timing.gather, timing.ping)
        table.add_row(
            str(timing.ranks),
            str(timing.batch),
            *(f"{value:.2f}" for value in (timing.p50, timing.p99)),
            f"{timing.samples_per_s:,.0f}",
            *(f"{value:.2f}" for value in parts),
            *(f"{value:,.0f}" for value in (timing.sent, timing.least)),
            f"{timing.sent / timing.least:.2f}" if timing.least else "-",
        )
    wide_console().print(table)
    engines = " and ".join(sorted({timing.engine for timing in timings}))
    typer.echo(
        f"medians in milliseconds, {threads} thread{'s' if threads > 1 else ''} a process, {engines}; alone: one "
        "process without a group, in turn with the group below it; bytes: a sample, that ranks sent one another, "
        "beside the least that must cross under the plan"
    )


def rankings(
    config: CappedConfig = None,
    candidates: Annotated[
        list[int] | None, typer.Option(min=1, help="Of a ranking; repeat it. [default: 128, 512, 2048]")
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0, max=0.99, help="Of the features, in the context; repeat it. [default: 0.25, 0.5, 0.75]"
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Names of the features in the context, apart by commas, in place of shares."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each kind of ranking.")] = 4.0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    compiled: Compiled = True,
    as_json: AsJson = False,
) -> None:
    """Time rankings with what candidates share computed once, against dense parts computed for each, in turn."""
    from dlrm_factory.tools.bench.rankings import context_features, measure_rankings

    declaration = declaration_of(config) if config else criteo(cap=100_000)
    shares = share or [0.25, 0.5, 0.75]
    contexts = [context.split(",")] if context else [context_features(declaration, each) for each in shares]
    with Console(stderr=True).status("preparing") as status:
        timings = measure_rankings(
            declaration,
            candidates=candidates or [128, 512, 2048],
            contexts=contexts,
            seconds=seconds,
            threads=threads,
            compiled=compiled,
            observe=status.update,
        )
    if as_json:
        typer.echo(jsonlib.dumps([asdict(timing) for timing in timings], indent=2))
        return
    headers = (
        "candidates", "shared", "for each", "once", "x samples/s", "request", "request, once", "x samples/s"
    )  # fmt: skip
    table = Table(*(Column(header, no_wrap=True, justify="right") for header in headers))
    for timing in timings:
        table.add_row(
            str(timing.candidates),
            str(len(timing.shared)),
            f"{timing.joint:.2f}",
            f"{timing.once:.2f}",
            f"{timing.ratio:.2f}",
            f"{timing.request_joint:.2f}",
            f"{timing.request_once:.2f}",
            f"{timing.request_ratio:.2f}",
        )
    wide_console().print(table)
    typer.echo(
        "milliseconds of CPU time a ranking, medians: the scorer, then bytes in and bytes out; shared: features in the "
        f"context; logits differ by {max(t.difference for t in timings):.1e} at most"
    )


# Any of them may be given a model whose dense net is code.
for _command in (decode, score, handle, http, memory, ranks, rankings):
    bench.command()(takes_code(_command))
