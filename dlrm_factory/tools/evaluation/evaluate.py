"""`evaluate`: model → samples → scores → figures, by slice and beside a baseline if asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.encoding import missing_words
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.data.source import Clicks
from dlrm_factory.tools.evaluation.baseline import (
    BASELINE,
    TreeObserver,
    check_baseline,
    train_baseline,
)
from dlrm_factory.tools.evaluation.groups import GroupCodes
from dlrm_factory.tools.evaluation.judging import Candidate, Judge, Scored
from dlrm_factory.tools.evaluation.models import EvaluatedModel, open_model
from dlrm_factory.tools.evaluation.results import (
    Evaluation,
)
from dlrm_factory.tools.evaluation.samples import EvaluationSource, Samples, samples_of
from dlrm_factory.tools.evaluation.slice_values import SliceValues

__all__ = [
    "evaluate",
]


def score(model: EvaluatedModel, samples: Samples, *, column: str | None, observe: Observer) -> Scored:
    """All samples, scored by ``model``. DataError if there are none, or a score is no finite number."""
    labels, logits, truths, seen = [], [], [], []
    values = None if column is None else slice_values(model.declaration, column)
    group_column = model.declaration.training.group_column
    groups = None if group_column is None else GroupCodes(group_column)
    columns = [model.declaration.columns_of(each.name).start for each in model.declaration.probabilities]
    done = 0
    for block in samples.blocks():
        labels.append(block.labels)
        logits.append(model.scorer.outputs(block.batch)[:, columns])
        if block.true_logits is not None:
            truths.append(block.true_logits)
        if block.seen is not None:
            seen.append(block.seen)
        if values is not None and block.column is not None:
            values.add(block.column)
        if groups is not None:
            if block.groups is None:
                groups = None
            else:
                groups.add(block.groups)
        done += len(block.labels)
        observe(Progress(stage="evaluation", done=done))
    if not done:
        raise DataError(
            f"there are no rows to evaluate: {samples.description}; give more data, or --all-rows"
        )
    found = np.concatenate(logits)
    broken = int(np.count_nonzero(~np.isfinite(found).all(axis=1)))
    if broken:
        raise DataError(f"{model.path}: {broken:,} of {done:,} scores are not finite; train the model again")
    return Scored(
        labels=np.concatenate(labels),
        logits=found,
        true_logits=np.concatenate(truths) if truths else None,
        values=values,
        seen=np.concatenate(seen) if seen else None,
        groups=None if groups is None else groups.codes(),
    )


def slice_values(declaration: DLRMDeclaration, column: str) -> SliceValues:
    """Collector of ``column``, a declared feature or any other."""
    sparse = next((feature for feature in declaration.sparse_features if feature.name == column), None)
    dense = next((feature for feature in declaration.dense_features if feature.name == column), None)
    several = sparse is not None and sparse.max_length > 1
    return SliceValues(
        is_id=sparse is not None,
        separator=declaration.training.separator if several else None,
        missing_words=() if dense is None else missing_words(dense),
    )


def evaluate(
    model: Path,
    source: EvaluationSource | None = None,
    *,
    baseline: bool = False,
    observe: Observer = lambda progress: None,
    observe_trees: TreeObserver = lambda done, total: None,
) -> Evaluation:
    """Evaluate the checkpoint or archive ``model`` on the samples of ``source``, as ``dlrm evaluate`` does.

    Args:
        model: a checkpoint (``.safetensors``), evaluated as trained, or an archive, evaluated as served.
        source: the samples; None for those that travel with the model.
        baseline: also train LightGBM on the model's training and validation rows, and put it beside.
        observe, observe_trees: told of progress, with the model and with the baseline.

    Raises:
        WeightsError, ArchiveError: ``model`` cannot be read.
        DataError: the data cannot be read or does not match the model, or there is nothing to evaluate.
        StackError: LightGBM is not installed.
    """
    source = source or EvaluationSource()
    if baseline:
        check_baseline()
        _check_training_rows(source)
    with open_model(model) as opened:
        if not opened.declaration.probabilities:
            raise DataError(f"{model}: has no output that is a probability, so there is nothing to evaluate")
        history = opened.history()
        samples = samples_of(opened, source, observe)
        # Before the scores: a baseline that cannot be had should show at once.
        clicks = samples.clicks() if baseline else None
        scored = score(opened, samples, column=source.column, observe=observe)
        candidates = [Candidate("DLRM", (opened.detail,) * scored.labels.shape[1], scored.logits)]
        if clicks is not None:
            candidates.append(_baseline(opened.declaration, clicks, samples, observe_trees))
        first, *others = (
            Judge(opened, scored, candidates, place).evaluation(source.column, samples.description)
            for place in range(scored.labels.shape[1])
        )
    return replace(first, history=history, unreadable=samples.unreadable(), others=tuple(others))


def _check_training_rows(source: EvaluationSource) -> None:
    if source.all_rows:
        raise DataError(
            "--baseline trains on most of --all-rows, so the two do not go together; leave one out"
        )
    if source.held_out and not source.data:
        raise DataError("--baseline needs the training rows beside --held-out; name their files with --data")


def _baseline(
    declaration: DLRMDeclaration, clicks: Clicks, samples: Samples, observe: TreeObserver
) -> Candidate:
    """LightGBM, a model for each probability."""
    rows = np.sort(np.concatenate([clicks.training, clicks.validation]))
    trained = [
        train_baseline(declaration, clicks.dataset, rows, output=place, observe=observe)
        for place in range(len(declaration.probabilities))
    ]
    logits = [each.logits(block.batch for block in samples.blocks()) for each in trained]
    return Candidate(BASELINE, tuple(each.detail for each in trained), np.stack(logits, axis=1))
