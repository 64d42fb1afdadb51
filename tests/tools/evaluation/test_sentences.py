"""Sentences of the report on a training that ended too soon, and on cells that could not be read."""

from __future__ import annotations

import pytest

from dlrm_factory.tools.data.bad_rows import UnreadableCells
from dlrm_factory.tools.evaluation.report_rows import sentences
from dlrm_factory.tools.evaluation.results import Evaluation
from dlrm_factory.tools.metrics.history import Evaluation as HistoryPoint


def evaluation(*areas: float, unreadable: tuple[UnreadableCells, ...] = ()) -> Evaluation:
    history = tuple(
        HistoryPoint(
            step=i,
            samples=100 * i,
            training_loss=0.5,
            held_out_auc=area,
            held_out_log_loss=0.5,
            learning_rate=0.1,
        )
        for i, area in enumerate(areas, start=1)
    )
    return Evaluation(
        model="m",
        samples_from="s",
        models=(),
        best=None,
        comparison=None,
        slices=None,
        history=history,
        unreadable=unreadable,
    )


def said(found: Evaluation) -> list[str]:
    """Sentences without the last, which is on ids that training saw."""
    return sentences(found)[:-1]


def test_a_curve_that_still_rises_is_told():
    (sentence,) = said(evaluation(0.7, 0.72))
    assert sentence == (
        "The AUC was still rising when training ended, by 0.0200 over the last quarter of the samples: "
        "more epochs would likely help."
    )


@pytest.mark.parametrize("areas", [(), (0.7,), (0.72, 0.7)])
def test_other_curves_are_not(areas):
    assert said(evaluation(*areas)) == []


def test_unreadable_cells_are_told():
    cells = tuple(UnreadableCells(feature=name, cells=n, example="") for name, n in (("a", 2000), ("b", 1)))
    assert said(evaluation(unreadable=cells)) == [
        '2,000 cells of "a" cannot be read and count as missing.',
        '1 cell of "b" cannot be read and counts as missing.',
    ]
