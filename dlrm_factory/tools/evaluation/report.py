"""An evaluation as text, as JSON, and as a folder: report.html, report.json and the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from dlrm_factory.errors import DataError
from dlrm_factory.tools.evaluation import markup
from dlrm_factory.tools.evaluation.figures import CALIBRATION_BINS, Curves, Figures
from dlrm_factory.tools.evaluation.pictures import PICTURES, draw_pictures
from dlrm_factory.tools.evaluation.results import Evaluation, SeenResult, SliceResult, SliceTable
from dlrm_factory.tools.evaluation.seen_sentences import seen_sentences
from dlrm_factory.tools.evaluation.slice_values import MAX_SLICES, MISSING, NUMBER_BINS, OTHER
from dlrm_factory.tools.metrics.history import rising_sentence, still_rising
from dlrm_factory.tools.metrics.metrics import AucDifference

__all__ = [
    "as_json",
    "check_report_folder",
    "figure_rows",
    "page",
    "seen_rows",
    "sentences",
    "slice_rows",
    "write_report",
]

_UNDEFINED = "not defined"
_ALIKE = "AUC is not defined where all labels are alike"

_SLICE_COLUMNS = (
    "samples",
    "base rate",
    "AUC ± 95%",
    "log-loss",
    "normalised entropy",
    "calibration",
)
_SEEN_NOTE = (
    "Samples by whether training saw all, some or none of a feature's ids; features whose ids training saw all are "
    "left out."
)
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
        *(f"{own.samples:,}", _number(own.base_rate), _auc(own), _number(own.log_loss)),
        *(_number(own.normalised_entropy), _number(own.calibration)),
        *(_number(figures.auc) for figures in found.figures[1:]),
    ]


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
    title = f"Evaluation of {evaluation.model}"
    parts = [*_heading(title, evaluation), markup.tiles(_tiles(evaluation))]
    parts += [markup.judgement(sentence) for sentence in sentences(evaluation)]
    parts += [
        "<h2>Figures</h2>",
        markup.table(*figure_rows(evaluation)),
        *markup.note(_figure_notes(evaluation)),
    ]
    parts += ["<h2>Pictures</h2>", '<div class="pictures">']
    parts += [markup.picture(pictures[name], _CAPTIONS[name]) for name in PICTURES if name in pictures]
    parts += ["</div>", *markup.note(_picture_notes(evaluation))]
    headings, rows = seen_rows(evaluation)
    if rows:
        parts += ["<h2>By ids seen in training</h2>", markup.table(headings, rows)]
        parts += markup.note([_SEEN_NOTE])
    if evaluation.slices is not None:
        parts += [f"<h2>By {escape(evaluation.slices.column)}</h2>", markup.table(*slice_rows(evaluation))]
        parts += markup.note(_slice_notes(evaluation.slices))
    return markup.document(title, parts)


def _heading(title: str, evaluation: Evaluation) -> list[str]:
    details = "; ".join(f"{model.name}: {model.detail}" for model in evaluation.models)
    return [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_sentence(evaluation.samples_from))}.<br>{escape(details)}.</p>',
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tiles(evaluation: Evaluation) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The model's figures that are looked at first, each beside the baseline's."""
    model, *others = evaluation.models
    shown: tuple[tuple[str, Callable[[Figures], str]], ...] = (
        ("AUC ± 95%", _auc),
        ("log-loss, nats", lambda f: _number(f.log_loss)),
        ("normalised entropy", lambda f: _number(f.normalised_entropy)),
        ("calibration", lambda f: _number(f.calibration)),
    )
    found = [
        (name, show(model.figures), [(other.name, show(other.figures)) for other in others])
        for name, show in shown
    ]
    figures = model.figures
    return [*found, ("samples", f"{figures.samples:,}", [("clicks", f"{figures.clicks:,}")])]


def _figure_notes(evaluation: Evaluation) -> list[str]:
    """Say what the figures are: only those that are there."""
    found = [model.figures for model in evaluation.models]
    notes = []
    if any(f.auc is not None for f in found):
        notes.append("AUC: the chance that a click scores above a non-click.")
    if any(f.auc_low is not None for f in found):
        notes.append("Its interval, which ± halves, is DeLong's.")
    if any(f.normalised_entropy is not None for f in found):
        notes.append(
            "Normalised entropy: log-loss over that of always predicting the base rate; below 1 is better than that."
        )
    if any(f.calibration is not None for f in found):
        notes.append("Calibration: predicted clicks over clicks; 1 is best.")
    notes.append(
        "Expected calibration error: the mean distance of predicted from true click rates over "
        f"{CALIBRATION_BINS} bins of about equally many samples."
    )
    if any(f.auc is None for f in found):
        notes.append(f"{_ALIKE}.")
    if evaluation.best is not None:
        notes.append("Best reachable: by the ground truth that drew the generated clicks.")
    return notes


def _picture_notes(evaluation: Evaluation) -> list[str]:
    """Say which pictures are not there, and why."""
    notes = []
    if any(model.curves.roc is None for model in evaluation.models):
        notes.append("No ROC curve: all labels are alike.")
    if not evaluation.history:
        notes.append("The model carries no history of its training, so there is no learning curve.")
    elif len(evaluation.history) == 1:
        (only,) = evaluation.history
        area = "" if only.held_out_auc is None else f" and a held-out AUC of {only.held_out_auc:.4f}"
        notes.append(
            f"The training was evaluated once, after {only.samples:,} samples, so there is no learning curve: "
            f"a held-out log-loss of {only.held_out_log_loss:.4f}{area}."
        )
    return notes


def _slice_notes(table: SliceTable) -> list[str]:
    """Say how the column was cut and what is not defined, where that is so."""
    kinds = {each.kind for each in table.slices}
    figures = [each.figures[0] for each in table.slices]
    notes = []
    if "bin" in kinds:
        notes.append(
            f"There are more than {MAX_SLICES} different numbers, so they are cut into {NUMBER_BINS} bins of about "
            "equally many samples."
        )
    if "other" in kinds:
        notes.append(
            f"There are more than {MAX_SLICES} different values: the {MAX_SLICES} most frequent are shown, and the "
            f"rest together as {OTHER}."
        )
    if "missing" in kinds:
        notes.append(f"{MISSING}: samples without a value.")
    if table.overlap:
        notes.append("A sample with several values is in the slice of each.")
    if any(f.auc_low is not None for f in figures):
        notes.append("± is half of DeLong's 95% interval.")
    if any(f.auc is None for f in figures):
        notes.append(f"{_ALIKE} in a slice.")
    return notes


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
        "seen": None if evaluation.seen is None else [_seen(each, evaluation) for each in evaluation.seen],
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
    return {
        "column": table.column,
        "overlap": table.overlap,
        "slices": [
            {"name": each.name, "kind": each.kind, "models": _models(each, evaluation)}
            for each in table.slices
        ],
    }


def _seen(found: SeenResult, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "feature": found.feature,
        "share_not_seen": found.share_not_seen,
        "false_share": found.false_share,
        "groups": [{"name": each.name, "models": _models(each, evaluation)} for each in found.groups],
    }


def _models(found: SliceResult, evaluation: Evaluation) -> dict[str, Any]:
    models = zip(evaluation.models, found.figures, strict=True)
    return {model.name: _fields(own) for model, own in models}


def _curves(curves: Curves) -> dict[str, Any]:
    parts = {"roc": curves.roc, "reliability": curves.reliability, "histogram": curves.histogram}
    return {
        name: None if part is None else {key: value.tolist() for key, value in _fields(part).items()}
        for name, part in parts.items()
    }
