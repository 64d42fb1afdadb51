"""An evaluation as a folder: report.html, report.json and the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from dlrm_factory.errors import DataError
from dlrm_factory.tools.evaluation import markup
from dlrm_factory.tools.evaluation.figures import CALIBRATION_BINS, Figures
from dlrm_factory.tools.evaluation.json_report import as_json
from dlrm_factory.tools.evaluation.pictures import PICTURES, draw_pictures, picture_name
from dlrm_factory.tools.evaluation.report_rows import (
    auc_cell,
    figure_rows,
    number,
    seen_rows,
    sentences,
    slice_rows,
)
from dlrm_factory.tools.evaluation.results import (
    Evaluation,
    SliceTable,
)
from dlrm_factory.tools.evaluation.slice_values import (
    MAX_SLICES,
    MISSING,
    NUMBER_BINS,
    OTHER,
)

__all__ = [
    "check_report_folder",
    "page",
    "write_report",
]

_ALIKE = "AUC is not defined where all labels are alike"

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


def page(evaluation: Evaluation, pictures: Mapping[str, str]) -> str:
    """The whole page. ``pictures``: SVG by name, set in as it is; every text of the model or the data is escaped."""
    title = f"Evaluation of {evaluation.model}"
    parts = _heading(title, evaluation)
    for each in evaluation.outputs:
        if each.output is not None:
            parts.append(f"<h1>Output {escape(each.output)}</h1>")
        parts += _of_output(each, pictures)
    return markup.document(title, parts)


def _of_output(evaluation: Evaluation, pictures: Mapping[str, str]) -> list[str]:
    """The part of one output."""
    parts = [markup.tiles(_tiles(evaluation))]
    parts += [markup.judgement(sentence) for sentence in sentences(evaluation)]
    parts += [
        "<h2>Figures</h2>",
        markup.table(*figure_rows(evaluation)),
        *markup.note(_figure_notes(evaluation)),
    ]
    parts += ["<h2>Pictures</h2>", '<div class="pictures">']
    named = [(picture_name(evaluation, name), _CAPTIONS[name]) for name in PICTURES]
    parts += [markup.picture(pictures[name], caption) for name, caption in named if name in pictures]
    parts += ["</div>", *markup.note(_picture_notes(evaluation))]
    headings, rows = seen_rows(evaluation)
    if rows:
        parts += ["<h2>By ids seen in training</h2>", markup.table(headings, rows)]
        parts += markup.note([_SEEN_NOTE])
    if evaluation.slices is not None:
        parts += [f"<h2>By {escape(evaluation.slices.column)}</h2>", markup.table(*slice_rows(evaluation))]
        parts += markup.note(_slice_notes(evaluation.slices))
    return parts


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
        ("AUC ± 95%", auc_cell),
        ("log-loss, nats", lambda f: number(f.log_loss)),
        ("normalised entropy", lambda f: number(f.normalised_entropy)),
        ("calibration", lambda f: number(f.calibration)),
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
    if evaluation.grouped is not None and evaluation.grouped.groups:
        notes.append("GAUC: the mean of the AUCs within each value of the column, weighted by samples.")
    if evaluation.best is not None:
        notes.append("Best reachable: by the ground truth that drew the generated clicks.")
    return notes


def _picture_notes(evaluation: Evaluation) -> list[str]:
    """Say which pictures are not there, and why."""
    notes = []
    if any(model.curves.roc is None for model in evaluation.models):
        notes.append("No ROC curve: all labels are alike.")
    if evaluation.output is not None and not evaluation.others:
        return notes  # the learning curve is with the first output
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
            for path in (folder / f"{name}.svg", *folder.glob(f"*-{name}.svg")):
                if path.stem not in pictures:
                    path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: the report cannot be written there: {error.strerror}") from None
    return [folder / name for name in texts]
