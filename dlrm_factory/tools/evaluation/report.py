"""An evaluation as text, as JSON, and as a folder: report.html, report.json and the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dlrm_factory.errors import DataError
from dlrm_factory.tools.evaluation.figures import CALIBRATION_BINS, Curves, Figures
from dlrm_factory.tools.evaluation.pictures import PICTURES, draw_pictures
from dlrm_factory.tools.evaluation.results import Evaluation, SliceTable
from dlrm_factory.tools.evaluation.slice_values import MAX_SLICES, NUMBER_BINS
from dlrm_factory.tools.metrics.history import rising_sentence, still_rising
from dlrm_factory.tools.metrics.metrics import AucDifference

__all__ = [
    "as_json",
    "check_report_folder",
    "figure_rows",
    "page",
    "sentences",
    "slice_rows",
    "write_report",
]

_UNDEFINED = "not defined"

_SLICE_COLUMNS = (
    "samples",
    "base rate",
    "AUC ± 95%",
    "log-loss",
    "normalised entropy",
    "calibration",
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #888; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; max-width: 100%; }
figure svg { max-width: 100%; height: auto; }
.judgement { border-left: 4px solid #4c78a8; padding: .4rem 1rem; background: #f3f6fa; }
.note { color: #555; font-size: .9rem; }
"""
_CAPTIONS = {
    "roc": "ROC curve: share of clicks found against share of non-clicks taken along, over all thresholds",
    "calibration": "Calibration: clicks against predicted clicks, in bins of about equally many samples",
    "scores": "Scores of clicks and of non-clicks",
    "learning": "Learning curve: log-loss and AUC over the training samples seen",
}


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
    """Sentence on the distance to the best reachable AUC; None where that is not known or not defined."""
    best = evaluation.best
    if best is None or best.share is None:
        return None
    name = evaluation.models[0].name
    return f"{name} comes {best.share:.1%} of the way from an AUC of 0.5 to the best reachable one."


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
    ("samples that tie", lambda f: f"{f.ties:,}"),
)


def page(evaluation: Evaluation, pictures: Mapping[str, str]) -> str:
    """The whole page. ``pictures``: SVG by name, set in as it is; every text of the model or the data is escaped."""
    parts = [f"<h1>Evaluation of {escape(evaluation.model)}</h1>", *_heading(evaluation)]
    parts += ["<h2>Figures</h2>", _table(*figure_rows(evaluation)), _figure_notes()]
    for sentence in sentences(evaluation):
        parts.append(f'<p class="judgement">{escape(sentence)}</p>')
    parts += ["<h2>Pictures</h2>", *_figures(pictures, ("roc", "calibration", "scores"))]
    parts += ["<h2>Learning curve</h2>", *_learning(evaluation, pictures)]
    if evaluation.slices is not None:
        parts += [f"<h2>By {escape(evaluation.slices.column)}</h2>", _table(*slice_rows(evaluation))]
        parts.append(_slice_notes(evaluation.slices.overlap))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation of {escape(evaluation.model)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _heading(evaluation: Evaluation) -> list[str]:
    details = "; ".join(f"{model.name}: {model.detail}" for model in evaluation.models)
    return [f"<p>{escape(_sentence(evaluation.samples_from))}.<br>{escape(details)}.</p>"]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _figures(pictures: Mapping[str, str], names: Sequence[str]) -> list[str]:
    return [
        f'<figure role="img" aria-label="{escape(_CAPTIONS[name])}">{_inline(pictures[name])}</figure>'
        for name in names
        if name in pictures
    ]


def _inline(svg: str) -> str:
    """Picture without the XML declaration and document type, which HTML does not take within a page."""
    return svg[svg.index("<svg") :]


def _learning(evaluation: Evaluation, pictures: Mapping[str, str]) -> list[str]:
    if not evaluation.history:
        return ["<p>The model carries no history of its training, so there is no learning curve.</p>"]
    return _figures(pictures, ("learning",))


def _figure_notes() -> str:
    return (
        '<p class="note">AUC: the chance that a click scores above a non-click; its interval is DeLong\'s. '
        "Normalised entropy: log-loss over that of always predicting the base rate; below 1 is better than that. "
        "Calibration: predicted clicks over clicks; 1 is best. Expected calibration error: the mean distance of "
        f"predicted from true click rates over {CALIBRATION_BINS} bins of about equally many samples.</p>"
    )


def _slice_notes(overlap: bool) -> str:
    text = (
        f"More than {MAX_SLICES} different values: numbers are cut into {NUMBER_BINS} bins of about equally many "
        f"samples; of other values the {MAX_SLICES} most frequent are shown, and the rest together. "
        "AUC is not defined where all labels are alike."
    )
    if overlap:
        text += " A sample with several values is in the slice of each."
    return f'<p class="note">{text}</p>'


def as_json(evaluation: Evaluation, *, curves: bool = False) -> dict[str, Any]:
    """``evaluation`` for JSON; None where a figure is not defined. ``curves``: with the points of the pictures."""
    best, comparison = evaluation.best, evaluation.comparison
    return {
        "model": evaluation.model,
        "samples_from": evaluation.samples_from,
        "models": [
            {"name": model.name, "detail": model.detail, **_fields(model.figures)}
            | ({"curves": _curves(model.curves)} if curves else {})
            for model in evaluation.models
        ],
        "best_reachable": None if best is None else _fields(best),
        "comparison": None
        if comparison is None
        else {
            "baseline": comparison.baseline,
            "auc_difference": None if comparison.difference is None else _difference(comparison.difference),
            "judgement": comparison.judgement,
        },
        "slices": None if evaluation.slices is None else _slices(evaluation.slices, evaluation),
        "history": [
            {name: getattr(point, name) for name in point.__struct_fields__ if name != "seconds"}
            for point in evaluation.history
        ],
        "still_rising": still_rising(evaluation.history),
        "unreadable": [{"feature": found.feature, "cells": found.cells} for found in evaluation.unreadable],
    }


def check_report_folder(folder: Path) -> None:
    """Make ``folder`` now, rather than fail after the work. DataError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"{folder}: the report cannot be written there: {error.strerror}") from None


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write report.html, which holds everything, report.json, and each picture as SVG. Older ones are replaced.

    Returns the files, report.html first. DataError if one cannot be written.
    """
    check_report_folder(folder)
    pictures = draw_pictures(evaluation)
    texts: Mapping[str, str] = {
        "report.html": page(evaluation, pictures),
        "report.json": json.dumps(as_json(evaluation, curves=True), indent=1, allow_nan=False) + "\n",
        **{f"{name}.svg": svg for name, svg in pictures.items()},
    }
    try:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name in PICTURES:  # of an older report
            if name not in pictures:
                (folder / f"{name}.svg").unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: the report cannot be written there: {error.strerror}") from None
    return [folder / name for name in texts]


def _fields(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__slots__}


def _difference(found: AucDifference) -> dict[str, Any]:
    return _fields(found) | {"is_significant": found.is_significant}


def _slices(table: SliceTable, evaluation: Evaluation) -> dict[str, Any]:
    def models(figures: tuple[Figures, ...]) -> dict[str, Any]:
        return {model.name: _fields(own) for model, own in zip(evaluation.models, figures, strict=True)}

    return {
        "column": table.column,
        "overlap": table.overlap,
        "slices": [{"name": each.name, "models": models(each.figures)} for each in table.slices],
    }


def _curves(curves: Curves) -> dict[str, Any]:
    parts = {"roc": curves.roc, "reliability": curves.reliability, "histogram": curves.histogram}
    return {
        name: None if part is None else {key: value.tolist() for key, value in _fields(part).items()}
        for name, part in parts.items()
    }
