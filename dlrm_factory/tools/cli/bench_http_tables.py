"""How `dlrm bench http` prints what it measured."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from dlrm_factory.config import format_bytes
from dlrm_factory.tools.bench.http.finding import FoundRate
from dlrm_factory.tools.bench.http.outcome import PERCENTILES, Outcome
from dlrm_factory.tools.bench.http.server_use import ServerUse
from dlrm_factory.tools.bench.wide_console import wide_console

__all__ = ["print_found_rate", "print_outcome"]


def print_outcome(outcome: Outcome, about: dict[str, Any], uses: list[ServerUse]) -> None:
    """One run: the load, rates, latencies, what failed, the server's processes."""
    console = wide_console()
    console.print(_load_line(outcome, about), highlight=False)
    console.print(
        f"[bold]{outcome.rate:,.1f}[/bold] requests/s, [bold]{outcome.sample_rate:,.0f}[/bold] samples/s "
        f"over {outcome.window_s:.1f} s",
        highlight=False,
    )
    table = Table("latency, ms", *PERCENTILES, "mean")
    mean = float(outcome.latencies.mean()) * 1000 if len(outcome.latencies) else float("nan")
    values = [*(outcome.latency_ms(p) for p in PERCENTILES.values()), mean]
    table.add_row("", *(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values))
    console.print(table)
    _print_failures(outcome, console)
    if uses:
        console.print(_use_table(uses))
    _print_generator(outcome, console)


def print_found_rate(found: FoundRate, about: dict[str, Any]) -> None:
    """Every run, and the rate that was found."""
    console = wide_console()
    console.print(_load_line(found.closed_loop, about), highlight=False)
    table = Table("offered/s", "answered/s", "p50 ms", "p99 ms", "p99.9 ms", "failed", "")
    table.add_row("closed loop", *_cells(found.closed_loop), "")
    for trial in found.trials:
        table.add_row(f"{trial.rate:,.0f}", *_cells(trial.outcome), "held" if trial.held else "too much")
    console.print(table)
    if found.rate:
        text = f"[bold]{found.rate:,.0f}[/bold] requests/s with p99 under {found.bound_ms:g} ms"
    else:
        text = f"no rate that was tried holds p99 under {found.bound_ms:g} ms"
    console.print(text, highlight=False)
    _print_generator(max((t.outcome for t in found.trials), key=lambda o: o.generator_cores), console)


def _load_line(outcome: Outcome, about: dict[str, Any]) -> str:
    kind = (
        "closed loop" if outcome.offered is None else f"open loop, {outcome.offered:,.1f} requests/s offered"
    )
    size = format_bytes(about["mean_request_bytes"])
    return (
        f"{about['model']} at {about['url']}: {about['shape']} samples a request ({about['format']}, {size}), "
        f"{about['connections']} connections, {kind}"
    )


def _cells(outcome: Outcome) -> list[str]:
    return [
        f"{outcome.rate:,.0f}",
        *(f"{outcome.latency_ms(p):.3g}" for p in (50, 99, 99.9)),
        f"{outcome.failed:,}",
    ]


def _print_failures(outcome: Outcome, console: Console) -> None:
    counts = {f"HTTP {status}": n for status, n in sorted(outcome.statuses.items()) if status != 200}
    counts |= outcome.failures
    if counts:
        told = ", ".join(f"{what}: {count:,}" for what, count in counts.items())
        console.print(f"[bold]{outcome.failed:,} failed[/bold] ({told})", highlight=False)
    else:
        console.print("none failed", highlight=False)


def _use_table(uses: list[ServerUse]) -> Table:
    table = Table("process", "pid", "cores", "private", "proportional")
    for use in uses:
        memory = (format_bytes(use.private_bytes), format_bytes(use.proportional_bytes))
        table.add_row(use.name, str(use.pid), f"{use.cores:.2f}", *memory)
    return table


def _print_generator(outcome: Outcome, console: Console) -> None:
    console.print(f"generator: {outcome.generator_cores:.2f} of a core", highlight=False)
    if outcome.generator_is_limit:
        console.print(
            "[yellow]The generator itself was busy: the server may do better. Give --processes 2, or another "
            "machine.[/yellow]",
            highlight=False,
        )
