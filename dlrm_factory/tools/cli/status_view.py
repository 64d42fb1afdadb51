"""A server's status in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.tools.monitoring.status import (
    DRIFT_ALARM,
    DRIFT_WARNING,
    MIN_DRIFT_SAMPLES,
    DriftStatus,
    Status,
    VersionStatus,
    worst_features,
)
from dlrm_factory.tools.monitoring.words import age, milliseconds, rate

__all__ = ["status_view"]

_BLOCKS = " ▁▂▃▄▅▆▇█"
_SHOWN_FEATURES = 4
_BAR = 12  # characters of a bar that is full at twice the alarm


def status_view(status: Status) -> RenderableType:
    """The status as one block of text, a panel a model version."""
    head = Text.assemble(
        ("● ", "bold green" if all(each.ok for each in status.models) else "bold red"),
        ("serving", "bold"),
        f" for {age(status.up_s)}  {status.inference}  pid {status.pid}  ",
        (f"{datetime.fromtimestamp(status.when):%H:%M:%S}, over {status.interval_s:.0f} s", "dim"),
    )
    if not status.models:
        return Group(head, Text("no model is registered", style="yellow"))
    return Group(head, *(_version(each, status.when) for each in status.models))


def _version(found: VersionStatus, when: float) -> Panel:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right", no_wrap=True)
    grid.add_column()
    grid.add_row("workers", _workers(found))
    grid.add_row("traffic", _traffic(found))
    grid.add_row("latency", _latency(found))
    grid.add_row("memory", _memory(found))
    grid.add_row("scores", _scores(found))
    grid.add_row("drift", _drift(found.drift))
    grid.add_row("labels", _labels(found, when))
    title = Text.assemble(
        (f" {found.model} {found.version} ", "bold"), ("default " if found.default else "", "dim")
    )
    if found.archive_created:
        title.append(f"archive {age(when - found.archive_created)} old ", style="dim")
    return Panel(grid, title=title, title_align="left", border_style=_colour(found))


def _colour(found: VersionStatus) -> str:
    if found.workers < found.wanted or not found.wanted:
        return "red"
    if found.drift is not None and found.drift.over(DRIFT_WARNING):
        return "red" if found.drift.over(DRIFT_ALARM) else "yellow"
    return "green"


def _workers(found: VersionStatus) -> Text:
    missing = found.workers < found.wanted or not found.wanted
    text = Text.assemble(
        (f"{found.workers} of {found.wanted} ready", "bold red" if missing else "bold green")
    )
    engines = [f"{count} {name}" for name, count in found.engines.items() if count]
    text.append(f"   {', '.join(engines)}" if engines else "")
    text.append(f"   {found.goldens} goldens" if found.goldens else "   goldens none", style="dim")
    return text


def _traffic(found: VersionStatus) -> Text:
    rates = found.rates
    text = Text.assemble((rate(rates.requests), "bold"), f" requests/s   {rate(rates.samples)} samples/s   ")
    text.append(f"{rate(rates.errors)} errors/s", style="bold red" if rates.errors else "dim")
    text.append(f"   queue {found.waiting}", style="bold yellow" if found.waiting > 10 else "")
    if rates.batch_requests is not None:
        text.append(f"   {rates.batch_requests:.1f} requests a batch")
    text.append(f"   {found.requests:,} in all, {found.errors:,} errors", style="dim")
    return text


def _latency(found: VersionStatus) -> Text:
    rates = found.rates
    if rates.p50_s is None:
        return Text("no request in this interval", style="dim")
    text = Text.assemble(
        "p50 ",
        (milliseconds(rates.p50_s), "bold"),
        "   p99 ",
        (milliseconds(rates.p99_s), "bold"),
        " a batch   ",
    )
    text.append("  ".join(f"{name} {milliseconds(span)}" for name, span in rates.stages.items()), style="dim")
    return text


def _memory(found: VersionStatus) -> Text:
    tables = f"{format_bytes(found.tables_resident_bytes)} of {format_bytes(found.tables_bytes)}"
    return Text.assemble(
        (format_bytes(found.private_bytes), "bold"),
        " of the workers' own   tables ",
        (tables, "bold"),
        " in memory",
    )


def _scores(found: VersionStatus) -> Text:
    if found.mean_score is None:
        return Text("none yet", style="dim")
    return Text.assemble(
        "mean ", (f"{found.mean_score:.4f}", "bold"), "   0 ", (sparkline(found.score_counts), "cyan"), " 1"
    )


def _drift(drift: DriftStatus | None) -> Text:
    if drift is None:
        return Text("the archive has no reference: it was made without 1,000 held-out samples", style="dim")
    window = f"   {drift.samples:,} samples in {age(drift.window_s)}"
    if not drift.enough:
        return Text(f"waits for {MIN_DRIFT_SAMPLES:,} samples{window}", style="dim")
    text = Text()
    alarming = drift.over(DRIFT_WARNING)
    text.append("none" if not alarming else "", style="bold green")
    text.append(window.strip() if alarming else window, style="dim")
    for name, index in [("scores", drift.score), *worst_features(drift, _SHOWN_FEATURES)]:
        style = "red" if index > DRIFT_ALARM else "yellow" if index > DRIFT_WARNING else "green"
        full = min(round(_BAR * index / (2 * DRIFT_ALARM)), _BAR)
        text.append(f"\n{name[:24]:<24} ")
        text.append(f"{'━' * max(full, 1):<{_BAR}}", style=style)
        text.append(f" {index:.3f}", style=style)
    return text


def _labels(found: VersionStatus, when: float) -> Text:
    labels = found.labels
    if labels is None:
        return Text("none yet: `dlrm labels FILE`", style="dim")
    calibration, entropy = labels["calibration"], labels["normalized_entropy"]
    text = Text.assemble(
        "calibration ",
        ("undefined" if calibration is None else f"{calibration:.3f}", "bold"),
        "   normalized entropy ",
        ("undefined" if entropy is None else f"{entropy:.3f}", "bold"),
    )
    text.append(f"   {labels['joined']:,} labels, {age(when - (labels['when'] or when))} ago", style="dim")
    return text


def sparkline(counts: Sequence[float]) -> str:
    """One character a count, as high as its share of the largest."""
    most = max(counts, default=0)
    if not most:
        return ""
    return "".join(_BLOCKS[-(-int(8 * count * 1000 / most) // 1000)] if count else " " for count in counts)
