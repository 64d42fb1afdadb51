"""Rows and sentences of an evaluation, as the command line and the report's page show them."""

from __future__ import annotations

from collections.abc import Callable

from dlrm_factory.tools.evaluation.figures import Figures
from dlrm_factory.tools.evaluation.results import Evaluation, SliceResult
from dlrm_factory.tools.evaluation.seen_sentences import seen_sentences
from dlrm_factory.tools.metrics.history import rising_sentence, still_rising

__all__ = ["auc_cell", "figure_rows", "number", "seen_rows", "sentences", "slice_rows"]

_UNDEFINED = "not defined"
_SLICE_COLUMNS = (
    "samples",
    "base rate",
    "AUC ± 95%",
    "log-loss",
    "normalised entropy",
    "calibration",
)


def figure_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each figure: its name, each model's value, the best reachable one where it is known."""
    best = evaluation.best
    headings = ["", *(model.name for model in evaluation.models)]
    rows = [[name, *(show(model.figures) for model in evaluation.models)] for name, show in _FIGURES]
    if best is not None:
        headings.append("best reachable")
        known = {"AUC": number(best.auc), "log-loss, nats": number(best.log_loss)}
        rows = [[*row, known.get(row[0], "")] for row in rows]
    grouped = evaluation.grouped
    if grouped is not None and grouped.known:
        rows.append([f"GAUC by {grouped.column}", *(number(area) for area in grouped.aucs)])
        rows[-1] += [""] * (len(headings) - len(rows[-1]))
    return headings, rows


def sentences(evaluation: Evaluation) -> list[str]:
    """Say what follows from the figures: how near the best, against the baseline, what to do."""
    judgement = None if evaluation.comparison is None else evaluation.comparison.judgement
    unreadable = [f"{found}." for found in evaluation.unreadable]
    found = [_share_sentence(evaluation), judgement, _training_sentence(evaluation)]
    found += [_grouped_sentence(evaluation), *unreadable]
    found += seen_sentences(evaluation.seen)
    return [sentence for sentence in found if sentence]


def _training_sentence(evaluation: Evaluation) -> str | None:
    """Advice to train on, where the training's curve gives it."""
    gain = still_rising(evaluation.history)
    if gain is not None:
        return rising_sentence(gain)
    comparison = evaluation.comparison
    if comparison is None or len(evaluation.history) != 1:
        return None
    if comparison.difference is None or comparison.difference.low > 0:
        return None
    return (
        "The training was evaluated once only, so nothing says that more epochs would not help: "
        "try some with early_stopping."
    )


def _share_sentence(evaluation: Evaluation) -> str | None:
    """Sentence on the distance to the best reachable AUC; None where that is not known or not defined."""
    best = evaluation.best
    if best is None or best.share is None:
        return None
    name = evaluation.models[0].name
    return f"{name} comes {best.share:.1%} of the way from an AUC of 0.5 to the best reachable one."


def _grouped_sentence(evaluation: Evaluation) -> str | None:
    """Sentence on the groups of GAUC, where a column is declared."""
    grouped = evaluation.grouped
    if grouped is None:
        return None
    if not grouped.known:
        return f"There is no GAUC: these samples do not carry the column {grouped.column}; name files with --data."
    if not grouped.groups:
        return f"There is no GAUC: no value of {grouped.column} has both labels."
    share = grouped.samples / evaluation.models[0].figures.samples
    return (
        f"GAUC is of {grouped.groups:,} values of {grouped.column} with both labels, which have {share:.1%} of the "
        "samples."
    )


def slice_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each slice: its name, the model's figures, and the baseline's AUC if there is one."""
    table = evaluation.slices
    assert table is not None
    others = evaluation.models[1:]
    headings = [table.column, *_SLICE_COLUMNS, *(f"AUC of {model.name}" for model in others)]
    return headings, [[each.name, *_slice_cells(each)] for each in table.slices]


def seen_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each group of each feature with ids that training did not see; as `slice_rows`."""
    others = [f"AUC of {model.name}" for model in evaluation.models[1:]]
    found = [each for each in evaluation.seen or () if each.share_not_seen]
    return ["ids in training", *_SLICE_COLUMNS, *others], [
        [f"{each.feature}: {group.name}", *_slice_cells(group)] for each in found for group in each.groups
    ]


def _slice_cells(found: SliceResult) -> list[str]:
    own = found.figures[0]
    return [
        *(f"{own.samples:,}", number(own.base_rate), auc_cell(own), number(own.log_loss)),
        *(number(own.normalised_entropy), number(own.calibration)),
        *(number(figures.auc) for figures in found.figures[1:]),
    ]


def auc_cell(figures: Figures) -> str:
    if figures.auc is None:
        return f"not defined, {'only' if figures.clicks else 'no'} clicks"
    if figures.auc_low is None or figures.auc_high is None:
        return number(figures.auc)
    return f"{figures.auc:.4f} ± {(figures.auc_high - figures.auc_low) / 2:.4f}"


def _interval(figures: Figures) -> str:
    if figures.auc_low is None or figures.auc_high is None:
        return _UNDEFINED
    return f"{figures.auc_low:.4f} to {figures.auc_high:.4f}"


def number(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.4f}"


_FIGURES: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("samples", lambda f: f"{f.samples:,}"),
    ("clicks", lambda f: f"{f.clicks:,}"),
    ("base rate", lambda f: number(f.base_rate)),
    ("AUC", lambda f: number(f.auc)),
    ("AUC, 95% interval", _interval),
    ("log-loss, nats", lambda f: number(f.log_loss)),
    ("normalised entropy", lambda f: number(f.normalised_entropy)),
    ("calibration", lambda f: number(f.calibration)),
    ("expected calibration error", lambda f: number(f.calibration_error)),
    ("samples that tie", lambda f: f"{f.ties:,}"),
)
