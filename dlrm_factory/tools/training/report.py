"""Report of a training run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from dlrm_factory.tools.data.bad_rows import BadRows, UnreadableCells
from dlrm_factory.tools.data.labels import counts_for
from dlrm_factory.tools.metrics.history import Evaluation, history_json, still_rising
from dlrm_factory.tools.metrics.metrics import auc, log_loss
from dlrm_factory.tools.training.loop import TrainingRun

__all__ = [
    "OutputFigures",
    "SeedFigures",
    "Spread",
    "TrainingReport",
    "make_report",
    "seed_figures",
    "spread_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFigures:
    """Figures of the weights that a run from ``seed`` keeps; ``validation_auc`` None without a validation part."""

    seed: int
    held_out_auc: float | None
    held_out_log_loss: float
    validation_auc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFigures:
    """Figures of one probability on the held-out rows that count for it, ``held_out_rows`` of them.

    The best ones are those of the ground truth, None for real clicks; an AUC is None if all labels are alike, and a
    log-loss, in nats, if there are no rows.
    """

    output: str
    held_out_rows: int
    held_out_log_loss: float | None
    held_out_auc: float | None
    best_log_loss: float | None
    best_auc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and standard deviation, that of a sample, of a figure over several runs."""

    mean: float
    std: float


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Spread of two values or more; None with fewer, or if one is undefined."""
    found = list(values)
    known = [value for value in found if value is not None]
    if len(known) < 2 or len(known) < len(found):
        return None
    return Spread(mean=statistics.fmean(known), std=statistics.stdev(known))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """Figures that a training run reached.

    Fields:
        rows, training_rows, validation_rows, held_out_rows: samples.
        epochs: passes over the training rows, as declared.
        refit_epochs: passes in which the weights that are kept were trained anew, validation rows included; None if
            they were not.
        steps: optimiser steps taken, those before training anew included.
        kept_step: the step whose weights are kept; with early stopping that of the best validation AUC, else the last.
        stopped_early: early stopping ended the run before its last step.
        seconds: of the steps alone, without reading, evaluation and saving.
        samples_per_second: in the steps, all ranks together.
        training_loss: mean over the last epoch, in nats, all ranks together; each batch before its own step.
        held_out_log_loss: in nats, of the weights that are kept; of the first probability, on the rows that count.
        held_out_auc: area under the ROC curve, likewise; None if the held-out labels are all alike.
        best_log_loss, best_auc: what the ground truth itself reaches on the held-out rows, which no model can
            be expected to beat; None for real clicks.
        history: the evaluations, in order; where the weights were trained anew, those before that.
        bad_rows: what was left out of the data; None if no row may be.
        unreadable: cells of features that counted as missing.
        outputs: each probability's figures, the first's as above; empty if there is one.
        still_rising: how much the AUC still rose at the end, so that more epochs would likely help; None if it did not.
            See `dlrm_factory.tools.metrics.history.still_rising`.
        seeds: the figures of every seed's run, this one's first; empty if there was one run.
    """

    rows: int
    training_rows: int
    validation_rows: int
    held_out_rows: int
    epochs: int
    refit_epochs: float | None
    steps: int
    kept_step: int
    stopped_early: bool
    seconds: float
    samples_per_second: float
    training_loss: float
    held_out_log_loss: float
    held_out_auc: float | None
    best_log_loss: float | None
    best_auc: float | None
    history: tuple[Evaluation, ...]
    bad_rows: BadRows | None = None
    unreadable: tuple[UnreadableCells, ...] = ()
    outputs: tuple[OutputFigures, ...] = ()
    still_rising: float | None = None
    seeds: tuple[SeedFigures, ...] = ()

    def metadata(self) -> dict[str, str]:
        """Text that the checkpoint keeps: all that is the same in a repeated run; the history as JSON."""
        figures = {name: getattr(self, name) for name in self.__slots__}
        del figures["seconds"], figures["samples_per_second"], figures["history"]
        del figures["unreadable"], figures["still_rising"], figures["seeds"], figures["outputs"]
        figures["bad_rows"] = None if self.bad_rows is None else self.bad_rows.rows
        kept = {key: repr(value) for key, value in figures.items() if value is not None}
        if self.outputs:
            kept["outputs"] = msgspec.json.encode(self.outputs).decode()
        return kept | {"history": history_json(self.history)}


def seed_figures(seed: int, report: TrainingReport) -> SeedFigures:
    """Figures of ``report`` that are compared between seeds."""
    found = [e.validation_auc for e in report.history if e.validation_auc is not None]
    return SeedFigures(
        seed=seed,
        held_out_auc=report.held_out_auc,
        held_out_log_loss=report.held_out_log_loss,
        validation_auc=max(found, default=None),
    )


def make_report(
    run: TrainingRun,
    logits: np.ndarray,
    true_logits: np.ndarray | None,
    bad_rows: BadRows | None = None,
    unreadable: tuple[UnreadableCells, ...] = (),
) -> TrainingReport:
    """Report of a run that is over. Collective over the ranks.

    Args:
        logits: of the held-out rows, float32 [rows, probabilities], by the weights that are kept.
        true_logits: of all rows, [N, probabilities], by the ground truth, if there is one.
        bad_rows: what was left out of the data.
        unreadable: cells that counted as missing.
    """
    state, data, search = run.state, run.data, run.state.search
    history = state.history if search is None else search.history
    labels = data.clicks.labels[data.held_out]
    truth = None if true_logits is None else true_logits[data.held_out]
    names = [output.name for output in run.objective.built.declaration.probabilities]
    outputs = [_figures(name, p, labels, logits, truth) for p, name in enumerate(names)]
    first = outputs[0]
    return TrainingReport(
        rows=len(data.clicks),
        training_rows=len(data.training),
        validation_rows=len(data.validation),
        held_out_rows=len(data.held_out),
        epochs=run.objective.options.epochs,
        refit_epochs=None if search is None else search.passes,
        steps=state.all_steps,
        kept_step=state.all_steps if state.best_step is None else state.best_step,
        stopped_early=(state.stopped and state.epoch < run.objective.options.epochs)
        if search is None
        else search.stopped,
        seconds=state.seconds,
        samples_per_second=(run.samples + (0 if search is None else search.samples))
        / max(state.seconds, 1e-9),
        training_loss=state.epoch_loss.over_ranks().mean,
        held_out_log_loss=math.nan if first.held_out_log_loss is None else first.held_out_log_loss,
        held_out_auc=first.held_out_auc,
        best_log_loss=first.best_log_loss,
        best_auc=first.best_auc,
        history=tuple(history),
        bad_rows=bad_rows,
        unreadable=unreadable,
        outputs=tuple(outputs) if len(outputs) > 1 else (),
        still_rising=still_rising(history),
    )


def _figures(
    name: str, place: int, labels: np.ndarray, logits: np.ndarray, truth: np.ndarray | None
) -> OutputFigures:
    """Figures of the probability at ``place``; arrays are [held-out rows, probabilities]."""
    rows = counts_for(labels, place)
    own = labels[rows, place]
    best = None if truth is None else truth[rows, place]
    return OutputFigures(
        output=name,
        held_out_rows=len(own),
        held_out_log_loss=_defined(log_loss(own, logits[rows, place])),
        held_out_auc=_defined(auc(own, logits[rows, place])),
        best_log_loss=None if best is None else _defined(log_loss(own, best)),
        best_auc=None if best is None else _defined(auc(own, best)),
    )


def _defined(figure: float) -> float | None:
    return None if math.isnan(figure) else figure
