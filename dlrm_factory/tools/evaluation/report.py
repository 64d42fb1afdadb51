"""An evaluation as JSON, and as a folder: report.html, report.json and the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_factory.errors import DataError
from dlrm_factory.tools.evaluation.curves import Curves
from dlrm_factory.tools.evaluation.figures import Figures
from dlrm_factory.tools.evaluation.page import page
from dlrm_factory.tools.evaluation.pictures import PICTURES, draw_pictures
from dlrm_factory.tools.evaluation.results import Evaluation, SliceTable
from dlrm_factory.tools.metrics.history import still_rising
from dlrm_factory.tools.metrics.metrics import AucDifference

__all__ = ["as_json", "check_report_folder", "write_report"]


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
