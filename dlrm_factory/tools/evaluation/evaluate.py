"""`evaluate`: model → samples → scores → figures, by slice and beside a baseline if asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError
from dlrm_factory.requests.numbers import answered_probabilities
from dlrm_factory.tools.data.encoding import missing_words
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.data.seen_bags import GROUPS
from dlrm_factory.tools.evaluation.baseline import BASELINE, TreeObserver, check_baseline, train_baseline
from dlrm_factory.tools.evaluation.figures import CALIBRATION_BINS, Figures, curves_of, measure
from dlrm_factory.tools.evaluation.models import EvaluatedModel, open_model
from dlrm_factory.tools.evaluation.results import (
    Best,
    Comparison,
    Evaluation,
    ModelResult,
    SeenResult,
    SliceResult,
    SliceTable,
)
from dlrm_factory.tools.evaluation.samples import EvaluationSource, Samples, samples_of
from dlrm_factory.tools.evaluation.slice_values import SliceValues
from dlrm_factory.tools.metrics.metrics import AucDifference, auc, compare_aucs, log_loss

__all__ = [
    "compare",
    "evaluate",
]

_NOTABLE = 0.001  # of AUC: a significant difference below it is too small to pay for much
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """N samples, scored.

    Fields:
        labels: uint8 [N] of 0 and 1.
        logits: float32 [N].
        true_logits: the ground truth's, float64 [N]; None for real clicks.
        values: the column to cut them by; None without one.
        seen: uint8 [N, F], see `seen_bags.group_samples`; None if that is not known.
    """

    labels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    true_logits: npt.NDArray[np.float64] | None
    values: SliceValues | None
    seen: npt.NDArray[np.uint8] | None = None


def score(model: EvaluatedModel, samples: Samples, *, column: str | None, observe: Observer) -> Scored:
    """All samples, scored by ``model``. DataError if there are none, or a score is no finite number."""
    labels, logits, truths, seen = [], [], [], []
    values = None if column is None else slice_values(model.declaration, column)
    done = 0
    for block in samples.blocks():
        labels.append(block.labels)
        logits.append(model.scorer.logits(block.batch))
        if block.true_logits is not None:
            truths.append(block.true_logits)
        if block.seen is not None:
            seen.append(block.seen)
        if values is not None and block.column is not None:
            values.add(block.column)
        done += len(block.labels)
        observe(Progress(stage="evaluation", done=done))
    if not done:
        raise DataError(
            f"there are no rows to evaluate: {samples.description}; give more data, or --all-rows"
        )
    found = np.concatenate(logits)
    broken = int(np.count_nonzero(~np.isfinite(found)))
    if broken:
        raise DataError(f"{model.path}: {broken:,} of {done:,} scores are not finite; train the model again")
    return Scored(
        labels=np.concatenate(labels),
        logits=found,
        true_logits=np.concatenate(truths) if truths else None,
        values=values,
        seen=np.concatenate(seen) if seen else None,
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


def compare(
    labels: npt.NDArray[np.uint8],
    model: npt.NDArray[np.float32],
    baseline: npt.NDArray[np.float32],
    results: Sequence[ModelResult],
) -> Comparison:
    """``model``'s logits against ``baseline``'s, float32 [N] each; ``results``: of the two, for their names."""
    found = compare_aucs(labels, *map(answered_probabilities, (model, baseline)))
    one, other = results[0].name, results[1].name
    return Comparison(
        baseline=other,
        difference=found,
        judgement=_judgement(one, other, found) if found else _undefined(one, other),
    )


def _judgement(one: str, other: str, found: AucDifference) -> str:
    interval = f"95% interval of {one} less {other}: {found.low:+.4f} to {found.high:+.4f}"
    size = f"{abs(found.difference):.4f} AUC ({interval})"
    if not found.is_significant:
        return (
            f"These samples do not show that {one} ranks better or worse than {other}: they differ by {size}. "
            f"{other} is the simpler model."
        )
    better, worse = (one, other) if found.difference > 0 else (other, one)
    if abs(found.difference) < _NOTABLE:
        return (
            f"{better} ranks better than {worse} by {size}: more than chance, but little. "
            f"{other} is the simpler model."
        )
    if better == one:
        return f"{one} ranks better than {other} by {size}."
    return f"{other}, the simpler model, ranks better than {one} by {size}: serve it, or train {one} better first."


def _undefined(one: str, other: str) -> str:
    return f"There are fewer than 2 clicks or fewer than 2 non-clicks, so {one} and {other} cannot be compared by AUC."


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
        seen=_seen(opened, scored, logits, models),
    )


def _check_training_rows(source: EvaluationSource) -> None:
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
        curves=curves_of(labels, answered_probabilities(logits), bins=CALIBRATION_BINS),
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


def _seen(
    model: EvaluatedModel, scored: Scored, logits: Sequence[Float32], results: Sequence[ModelResult]
) -> tuple[SeenResult, ...] | None:
    """Figures by each sparse feature's ids that training saw; ``results``: of all samples."""
    if model.seen_ids is None or scored.seen is None:
        return None

    def figures(mask: npt.NDArray[np.bool_]) -> tuple[Figures, ...]:
        if mask.all():
            return tuple(result.figures for result in results)
        return tuple(measure(scored.labels[mask], own[mask]) for own in logits)

    def groups(codes: npt.NDArray[np.uint8]) -> tuple[SliceResult, ...]:
        found = reversed(np.unique(codes).tolist())
        return tuple(SliceResult(name=GROUPS[code], figures=figures(codes == code)) for code in found)

    return tuple(
        SeenResult(feature=name, groups=groups(scored.seen[:, f]), false_share=model.seen_ids.false_share(f))
        for f, name in enumerate(model.declaration.sparse_names)
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
                name=each.name,
                figures=tuple(measure(labels[each.rows], own[each.rows]) for own in logits),
                kind=each.kind,
            )
            for each in found
        ),
    )
