"""Tables and lines that ``dlrm train``, ``evaluate`` and ``bench`` print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dlrm_factory.config import format_bytes
from dlrm_factory.tools.bench.http.finding import FoundRate
from dlrm_factory.tools.bench.http.outcome import PERCENTILES, Outcome
from dlrm_factory.tools.bench.http.server import ServerUse

if TYPE_CHECKING:
    from dlrm_factory.tools.evaluation import Evaluation
    from dlrm_factory.tools.training import TrainingReport
    from dlrm_factory.tools.tuning import TuningReport

__all__ = [
    "bad_rows_lines",
    "evaluation_tables",
    "print_found_rate",
    "print_outcome",
    "seed_lines",
    "training_table",
    "tuning_lines",
    "tuning_table",
    "unfinished_lines",
    "unreadable_lines",
    "wide_console",
]

_COLUMNS = 120
_SHOWN_TRIALS = 10


def wide_console() -> Console:
    """Console as wide as the terminal, for a file or pipe 120 columns: rich would take 80 and fold every cell."""
    console = Console()
    return console if console.is_terminal else Console(width=_COLUMNS)


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
    if report.outputs:
        for each in report.outputs:
            losses, areas = (each.held_out_log_loss, each.best_log_loss), (each.held_out_auc, each.best_auc)
            table.add_row(f"{each.output}: held out", f"{each.held_out_rows:,}")
            table.add_row(f"{each.output}: held-out log-loss", *map(_figure, losses[:shown]))
            table.add_row(f"{each.output}: held-out AUC", *map(_figure, areas[:shown]))
        return table
    table.add_row("held-out log-loss", *map(_figure, log_losses[:shown]))
    table.add_row("held-out AUC", *map(_figure, aucs[:shown]))
    if report.held_out_auc is not None and report.best_auc is not None and report.best_auc > 0.5:
        way = (report.held_out_auc - 0.5) / (report.best_auc - 0.5)
        table.add_row("way from 0.5 to the best AUC", f"{way:.1%}")
    return table


def bad_rows_lines(report: TrainingReport) -> list[str]:
    """Rows left out of the data: their number for each reason, and the first few."""
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


def seed_lines(report: TrainingReport) -> list[str]:
    """Mean and spread of the figures over all seeds, if there are several."""
    if not report.seeds:
        return []
    from dlrm_factory.tools.training.report import spread_of

    figures: dict[str, list[float | None]] = {
        "held-out AUC": [each.held_out_auc for each in report.seeds],
        "held-out log-loss": [each.held_out_log_loss for each in report.seeds],
        "validation AUC": [each.validation_auc for each in report.seeds],
    }
    lines = []
    for name, values in figures.items():
        spread = spread_of(values)
        if spread is not None:
            known = [value for value in values if value is not None]
            lines.append(
                f"{name} over {len(values)} seeds: {spread.mean:.4f} ± {spread.std:.4f} "
                f"({min(known):.4f} to {max(known):.4f})"
            )
    return lines


def tuning_table(report: TuningReport) -> Table:
    """The best trials of a search, and that of the declared settings."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "tables' optimiser", "its rate", "dense rate", "epochs", "dim", "validation AUC", "s"):
        table.add_column(name, justify="left" if name in ("", "tables' optimiser") else "right")
    shown = report.ranked()[:_SHOWN_TRIALS]
    if report.declared is not None and report.declared not in shown:
        shown.append(report.declared)
    for trial in shown:
        settings = trial.settings
        table.add_row(
            f"trial {trial.number}" + (", as declared" if trial == report.declared else ""),
            settings.sparse_optimizer,
            f"{settings.sparse_learning_rate:.3g}",
            f"{settings.learning_rate:.3g}",
            f"{trial.epochs:g} of {settings.epochs}",
            "as declared" if settings.embedding_dim is None else f"{settings.embedding_dim}",
            _figure(trial.validation_auc),
            f"{trial.seconds:.1f}",
        )
    return table


def tuning_lines(report: TuningReport) -> list[str]:
    """Count of the trials, and the gain over the declared settings."""
    states = [trial.state for trial in report.trials]
    counts = [f"{states.count(state)} {state}" for state in ("complete", "pruned", "unfinished", "failed")]
    lines = [f"{len(states)} trials: {', '.join(counts)}"]
    lines += [f"  trial {trial.number}: {trial.error}" for trial in report.trials if trial.error]
    if report.declared is not None:
        gain = (report.best.validation_auc or 0.0) - (report.declared.validation_auc or 0.0)
        lines.append(
            f"the best is {gain:+.4f} of AUC from the declared, on the {report.validation_rows:,} validation rows "
            "by which it was chosen"
        )
    return lines


def _epochs(report: TrainingReport) -> str:
    """Epochs of the weights that are kept, of those that there could be."""
    if report.refit_epochs is None:
        return f"{report.epochs}"
    return f"{report.refit_epochs:g} of {report.epochs}, then anew"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def evaluation_tables(evaluation: Evaluation) -> Iterator[RenderableType]:
    """Origin of the samples; of each output the figures, the judgement, figures by ids seen in training, the slices."""
    from dlrm_factory.tools.evaluation.report_rows import (
        figure_rows,
        seen_rows,
        sentences,
        slice_rows,
    )

    yield Text(f"{evaluation.model}: {evaluation.samples_from}")
    for each in evaluation.outputs:
        if each.output is not None:
            yield Text(f"\noutput {each.output}", style="bold")
        for model in each.models:
            yield Text(f"{model.name}: {model.detail}")
        yield Text("")
        yield _table(*figure_rows(each))
        for sentence in sentences(each):
            yield Text(sentence)
        headings, rows = seen_rows(each)
        if rows:
            yield Text("")
            yield _table(headings, rows)
        if each.slices is not None:
            yield Text("")
            yield _table(*slice_rows(each))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    # Text, not markup: names of models, columns and values may hold brackets.
    first, *others = headings
    table = Table(box=None, pad_edge=False)
    table.add_column(Text(first), min_width=12, overflow="fold", vertical="bottom")
    for heading in others:
        table.add_column(
            Text("\n".join(heading.rsplit(" ", 1))), justify="right", no_wrap=True, vertical="bottom"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


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
