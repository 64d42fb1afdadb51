"""Figures as people read them, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Callable

from dlrm_factory.tools.evaluation.figures import Figures
from dlrm_factory.tools.evaluation.results import Evaluation
from dlrm_factory.tools.metrics.history import rising_sentence, still_rising

__all__ = ["figure_rows", "sentences", "slice_rows"]

_UNDEFINED = "not defined"


def figure_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each figure: its name, each model's value, the best reachable one where it is known."""
    best = evaluation.best
    headings = ["", *(model.name for model in evaluation.models)]
    rows = [[name, *(show(model.figures) for model in evaluation.models)] for name, show in _FIGURES]
    if best is not None:
        headings.append("best reachable")
        known = {"AUC": _number(best.auc), "log-loss, nats": _number(best.log_loss)}
        rows = [[*row, known.get(row[0], "")] for row in rows]
    return headings, rows


def sentences(evaluation: Evaluation) -> list[str]:
    """Say what follows from the figures: how near the best, against the baseline, what to do."""
    judgement = None if evaluation.comparison is None else evaluation.comparison.judgement
    unreadable = [f"{found}." for found in evaluation.unreadable]
    found = [_share_sentence(evaluation), judgement, _training_sentence(evaluation), *unreadable]
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
    """How near the model comes to the best reachable AUC; None where that is not known or not defined."""
    best = evaluation.best
    if best is None or best.share is None:
        return None
    name = evaluation.models[0].name
    return f"{name} comes {best.share:.1%} of the way from an AUC of 0.5 to the best reachable one."


_SLICE_COLUMNS = (
    "samples",
    "base rate",
    "AUC ± 95%",
    "log-loss",
    "normalised entropy",
    "calibration",
)


def slice_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each slice: its name, the model's figures, and the baseline's AUC if there is one."""
    table = evaluation.slices
    assert table is not None
    others = evaluation.models[1:]
    headings = [table.column, *_SLICE_COLUMNS, *(f"AUC of {model.name}" for model in others)]
    rows = []
    for each in table.slices:
        own = each.figures[0]
        rows.append(
            [each.name, f"{own.samples:,}", _number(own.base_rate), _auc(own), _number(own.log_loss)]
            + [_number(own.normalised_entropy), _number(own.calibration)]
            + [_number(figures.auc) for figures in each.figures[1:]]
        )
    return headings, rows


def _auc(figures: Figures) -> str:
    if figures.auc is None:
        return f"not defined, {'only' if figures.clicks else 'no'} clicks"
    if figures.auc_low is None or figures.auc_high is None:
        return _number(figures.auc)
    return f"{figures.auc:.4f} ± {(figures.auc_high - figures.auc_low) / 2:.4f}"


def _interval(figures: Figures) -> str:
    if figures.auc_low is None or figures.auc_high is None:
        return _UNDEFINED
    return f"{figures.auc_low:.4f} to {figures.auc_high:.4f}"


def _number(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.4f}"


_FIGURES: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("samples", lambda f: f"{f.samples:,}"),
    ("clicks", lambda f: f"{f.clicks:,}"),
    ("base rate", lambda f: _number(f.base_rate)),
    ("AUC", lambda f: _number(f.auc)),
    ("AUC, 95% interval", _interval),
    ("log-loss, nats", lambda f: _number(f.log_loss)),
    ("normalised entropy", lambda f: _number(f.normalised_entropy)),
    ("calibration", lambda f: _number(f.calibration)),
    ("expected calibration error", lambda f: _number(f.calibration_error)),
)
