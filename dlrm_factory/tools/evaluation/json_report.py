"""An evaluation for JSON."""

from __future__ import annotations

from typing import Any

from dlrm_factory.tools.evaluation.figures import Curves
from dlrm_factory.tools.evaluation.results import (
    Evaluation,
    SeenResult,
    SliceResult,
    SliceTable,
)
from dlrm_factory.tools.metrics.history import still_rising
from dlrm_factory.tools.metrics.metrics import AucDifference

__all__ = ["as_json"]


def as_json(evaluation: Evaluation, *, curves: bool = False) -> dict[str, Any]:
    """``evaluation`` for JSON; None where a figure is not defined. ``curves``: with the points of the pictures.

    Of several outputs the figures are the first one's, and ``outputs`` holds those of each.
    """
    found = {
        "model": evaluation.model,
        "samples_from": evaluation.samples_from,
        **_of_output(evaluation, curves),
        "history": [
            {name: getattr(point, name) for name in point.__struct_fields__ if name != "seconds"}
            for point in evaluation.history
        ],
        "still_rising": still_rising(evaluation.history),
        "unreadable": [{"feature": found.feature, "cells": found.cells} for found in evaluation.unreadable],
    }
    if evaluation.others:
        found["outputs"] = [
            {"output": each.output, **_of_output(each, curves)} for each in evaluation.outputs
        ]
    return found


def _of_output(evaluation: Evaluation, curves: bool) -> dict[str, Any]:
    best, comparison, grouped = evaluation.best, evaluation.comparison, evaluation.grouped
    return {
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
        "seen": None if evaluation.seen is None else [_seen(each, evaluation) for each in evaluation.seen],
        "gauc": None
        if grouped is None
        else {
            "column": grouped.column,
            "groups": grouped.groups,
            "samples": grouped.samples,
            "models": {model.name: area for model, area in zip(evaluation.models, grouped.aucs, strict=True)},
        },
    }


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
