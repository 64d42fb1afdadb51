"""What ``dlrm train`` prints at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from dlrm_factory.tools.training import TrainingReport

__all__ = ["bad_rows_lines", "training_table", "unfinished_lines", "unreadable_lines"]


def training_table(report: TrainingReport) -> Table:
    """Rows, speed and quality; beside the held-out figures the best reachable ones, where they are known."""
    table = Table(box=None, show_header=report.best_log_loss is not None, pad_edge=False)
    table.add_column("")
    table.add_column("reached", justify="right")
    known = report.best_log_loss is not None
    if known:
        table.add_column("best reachable", justify="right")
    table.add_row("rows", f"{report.rows:,}")
    if report.bad_rows is not None:
        table.add_row("left out", f"{report.bad_rows.rows:,}")
    if report.validation_rows:
        table.add_row("validation", f"{report.validation_rows:,}")
    table.add_row("held out", f"{report.held_out_rows:,}")
    table.add_row("epochs", _epochs(report))
    table.add_row("samples/s", f"{report.samples_per_second:,.0f}")
    table.add_row("training loss", f"{report.training_loss:.4f}")
    log_losses = [report.held_out_log_loss, report.best_log_loss]
    aucs = [report.held_out_auc, report.best_auc]
    shown = 2 if known else 1
    table.add_row("held-out log-loss", *map(_figure, log_losses[:shown]))
    table.add_row("held-out AUC", *map(_figure, aucs[:shown]))
    if report.held_out_auc is not None and report.best_auc is not None and report.best_auc > 0.5:
        way = (report.held_out_auc - 0.5) / (report.best_auc - 0.5)
        table.add_row("way from 0.5 to the best AUC", f"{way:.1%}")
    return table


def bad_rows_lines(report: TrainingReport) -> list[str]:
    """What was left out of the data: how many rows for which reason, and the first few."""
    bad = report.bad_rows
    if bad is None or not bad.rows:
        return []
    kinds = [f'  {kind.rows:>10,}  column "{kind.column}": {kind.reason}' for kind in bad.kinds]
    return [
        f"left out {bad.rows:,} of {bad.read:,} rows",
        *kinds,
        "the first:",
        *(f"  {e}" for e in bad.examples),
    ]


def unreadable_lines(report: TrainingReport) -> list[str]:
    """Cells that counted as missing: how many of each feature, and the first."""
    return [line for found in report.unreadable for line in (f"{found}; the first:", f"  {found.example}")]


def unfinished_lines(report: TrainingReport) -> list[str]:
    """A word of advice where training ended too soon."""
    if report.still_rising is None:
        return []
    # It comes with what trains, and so with torch, which takes seconds.
    from dlrm_factory.tools.metrics.history import rising_sentence

    return [rising_sentence(report.still_rising)]


def _epochs(report: TrainingReport) -> str:
    """Those of the weights that are kept, of those that there could be."""
    if report.refit_epochs is None:
        return f"{report.epochs}"
    return f"{report.refit_epochs:g} of {report.epochs}, then anew"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
