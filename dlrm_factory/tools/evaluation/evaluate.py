"""`evaluate`: model → samples → scores → figures, by slice and beside a baseline if asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.progress import Observer
from dlrm_factory.tools.evaluation.baseline import BASELINE, TreeObserver, check_baseline, train_baseline
from dlrm_factory.tools.evaluation.comparing import compare
from dlrm_factory.tools.evaluation.curves import curves_of
from dlrm_factory.tools.evaluation.figures import CALIBRATION_BINS, measure, sigmoid
from dlrm_factory.tools.evaluation.models import open_model
from dlrm_factory.tools.evaluation.results import Best, Evaluation, ModelResult, SliceResult, SliceTable
from dlrm_factory.tools.evaluation.samples import Source, samples_of
from dlrm_factory.tools.evaluation.scoring import Scored, score
from dlrm_factory.tools.metrics.metrics import auc, log_loss

__all__ = ["evaluate"]

Float32 = npt.NDArray[np.float32]


def evaluate(
    model: Path,
    source: Source,
    *,
    baseline: bool = False,
    observe: Observer = lambda progress: None,
    observe_trees: TreeObserver = lambda done, total: None,
) -> Evaluation:
    """Evaluate the checkpoint or archive ``model`` on the samples of ``source``.

    Args:
        baseline: also train LightGBM on the model's training and validation rows, and put it beside.
        observe, observe_trees: told of progress, with the model and with the baseline.

    Raises:
        WeightsError, ArchiveError: ``model`` cannot be read.
        DataError: the data cannot be read or does not match the model, or there is nothing to evaluate.
        StackError: LightGBM is not installed.
    """
    if baseline:
        check_baseline()
        _check_training_rows(source)
    with open_model(model) as opened:
        history = opened.history()
        samples = samples_of(opened, source, observe)
        # Before the scores: a baseline that cannot be had should show at once.
        clicks = samples.clicks() if baseline else None
        scored = score(opened, samples, column=source.column, observe=observe)
        models = [_result("DLRM", opened.detail, scored.labels, scored.logits)]
        logits = [scored.logits]
        if clicks is not None:
            trained = train_baseline(
                opened.declaration,
                clicks.dataset,
                np.sort(np.concatenate([clicks.training, clicks.validation])),
                observe=observe_trees,
            )
            logits.append(trained.logits(block.batch for block in samples.blocks()))
            models.append(_result(BASELINE, trained.detail, scored.labels, logits[1]))
    return Evaluation(
        model=str(model),
        samples_from=samples.description,
        models=tuple(models),
        best=_best(scored, models[0]),
        comparison=compare(scored.labels, logits[0], logits[1], models) if baseline else None,
        slices=_slices(source.column, scored, logits),
        history=history,
        unreadable=samples.unreadable(),
    )


def _check_training_rows(source: Source) -> None:
    if source.all_rows:
        raise DataError(
            "--baseline trains on most of --all-rows, so the two do not go together; leave one out"
        )
    if source.held_out and not source.data:
        raise DataError("--baseline needs the training rows beside --held-out; name their files with --data")


def _result(name: str, detail: str, labels: npt.NDArray[np.uint8], logits: Float32) -> ModelResult:
    return ModelResult(
        name=name,
        detail=detail,
        figures=measure(labels, logits),
        curves=curves_of(labels, sigmoid(logits), bins=CALIBRATION_BINS),
    )


def _best(scored: Scored, model: ModelResult) -> Best | None:
    if scored.true_logits is None:
        return None
    best, reached = auc(scored.labels, scored.true_logits), model.figures.auc
    return Best(
        auc=None if np.isnan(best) else best,
        log_loss=log_loss(scored.labels, scored.true_logits),
        share=(reached - 0.5) / (best - 0.5) if reached is not None and best > 0.5 else None,
    )


def _slices(column: str | None, scored: Scored, logits: Sequence[Float32]) -> SliceTable | None:
    if column is None or scored.values is None:
        return None
    found, labels = scored.values.slices(), scored.labels
    return SliceTable(
        column=column,
        overlap=sum(len(each.rows) for each in found) > len(labels),
        slices=tuple(
            SliceResult(
                name=each.name, figures=tuple(measure(labels[each.rows], own[each.rows]) for own in logits)
            )
            for each in found
        ),
    )
