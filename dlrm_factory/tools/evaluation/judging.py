"""Scores of samples → figures, by output, group and slice, and against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import DataError
from dlrm_factory.requests.numbers import answered_probabilities
from dlrm_factory.tools.data.labels import counts_for
from dlrm_factory.tools.data.seen_bags import GROUPS
from dlrm_factory.tools.evaluation.figures import (
    CALIBRATION_BINS,
    Figures,
    curves_of,
    measure,
)
from dlrm_factory.tools.evaluation.models import EvaluatedModel
from dlrm_factory.tools.evaluation.results import (
    Best,
    Comparison,
    Evaluation,
    GroupResult,
    ModelResult,
    SeenResult,
    SliceResult,
    SliceTable,
)
from dlrm_factory.tools.evaluation.slice_values import SliceValues
from dlrm_factory.tools.metrics.metrics import (
    AucDifference,
    auc,
    compare_aucs,
    grouped_auc,
    log_loss,
)

__all__ = ["Candidate", "Judge", "Scored", "compare"]

_NOTABLE = 0.001  # of AUC: a significant difference below it is too small to pay for much
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """N samples, scored.

    Fields:
        labels: uint8 [N, probabilities] of 0 and 1; 2 where a sample does not count for one.
        logits: float32 [N, probabilities].
        true_logits: the ground truth's, float64 [N, probabilities]; None for real clicks.
        values: the column to cut them by; None without one.
        seen: uint8 [N, F], see `seen_bags.group_samples`; None if that is not known.
        groups: int64 [N], of the declared group_column, see `GroupCodes`; None without one, or if it is not there.
    """

    labels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    true_logits: npt.NDArray[np.float64] | None
    values: SliceValues | None
    seen: npt.NDArray[np.uint8] | None = None
    groups: npt.NDArray[np.int64] | None = None


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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model with its logits of all samples, float32 [N, probabilities]; ``details``: one a probability."""

    name: str
    details: tuple[str, ...]
    logits: Float32


class Judge:
    """Evaluates one output, on the samples that count for it."""

    def __init__(
        self, model: EvaluatedModel, scored: Scored, candidates: Sequence[Candidate], place: int
    ) -> None:
        """DataError if no sample counts for the probability at ``place``."""
        self._model, self._scored, self._place = model, scored, place
        self._output = model.declaration.probabilities[place].name
        self._counted = counts_for(scored.labels, place)
        if not self._counted.any():
            raise DataError(
                f'{model.path}: none of the {len(self._counted):,} samples counts for output "{self._output}"; '
                "give more data"
            )
        self._labels = scored.labels[:, place]
        self._logits = [each.logits[:, place] for each in candidates]
        labels = self._labels[self._counted]
        self._results = tuple(
            _result(each.name, each.details[place], labels, logits[self._counted])
            for each, logits in zip(candidates, self._logits, strict=True)
        )

    def evaluation(self, column: str | None, samples_from: str) -> Evaluation:
        """Results, without what is of all outputs."""
        several = self._scored.labels.shape[1] > 1
        return Evaluation(
            model=str(self._model.path),
            samples_from=samples_from,
            models=self._results,
            best=self._best(),
            comparison=self._comparison(),
            slices=self._slices(column),
            history=(),
            seen=self._seen(),
            grouped=self._grouped(),
            output=self._output if several else None,
        )

    def _figures(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> tuple[Figures, ...]:
        """Figures of every model on ``rows``, those of them that count."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        rows = rows[self._counted[rows]]
        return tuple(measure(self._labels[rows], own[rows]) for own in self._logits)

    def _comparison(self) -> Comparison | None:
        if len(self._logits) < 2:
            return None
        one, other = (logits[self._counted] for logits in self._logits)
        return compare(self._labels[self._counted], one, other, self._results)

    def _best(self) -> Best | None:
        if self._scored.true_logits is None:
            return None
        labels, truth = self._labels[self._counted], self._scored.true_logits[self._counted, self._place]
        best, reached = auc(labels, truth), self._results[0].figures.auc
        return Best(
            auc=None if np.isnan(best) else best,
            log_loss=log_loss(labels, truth),
            share=(reached - 0.5) / (best - 0.5) if reached is not None and best > 0.5 else None,
        )

    def _grouped(self) -> GroupResult | None:
        column, groups = self._model.declaration.training.group_column, self._scored.groups
        if column is None:
            return None
        if groups is None:
            aucs = tuple(None for _ in self._logits)
            return GroupResult(column=column, groups=0, samples=0, aucs=aucs, known=False)
        counted = self._counted
        found = [
            grouped_auc(self._labels[counted], answered_probabilities(logits[counted]), groups[counted])
            for logits in self._logits
        ]
        return GroupResult(
            column=column,
            groups=found[0].groups,
            samples=found[0].samples,
            aucs=tuple(None if np.isnan(each.auc) else each.auc for each in found),
        )

    def _seen(self) -> tuple[SeenResult, ...] | None:
        """Figures by each sparse feature's ids that training saw."""
        seen_ids, seen = self._model.seen_ids, self._scored.seen
        if seen_ids is None or seen is None:
            return None

        def figures(mask: npt.NDArray[np.bool_]) -> tuple[Figures, ...]:
            if mask[self._counted].all():
                return tuple(result.figures for result in self._results)
            return self._figures(mask)

        def groups(codes: npt.NDArray[np.uint8]) -> tuple[SliceResult, ...]:
            found = reversed(np.unique(codes[self._counted]).tolist())
            return tuple(SliceResult(name=GROUPS[code], figures=figures(codes == code)) for code in found)

        return tuple(
            SeenResult(feature=name, groups=groups(seen[:, f]), false_share=seen_ids.false_share(f))
            for f, name in enumerate(self._model.declaration.sparse_names)
        )

    def _slices(self, column: str | None) -> SliceTable | None:
        values = self._scored.values
        if column is None or values is None:
            return None
        found = values.slices()
        return SliceTable(
            column=column,
            overlap=sum(len(each.rows) for each in found) > len(self._labels),
            slices=tuple(
                SliceResult(name=each.name, figures=self._figures(each.rows), kind=each.kind)
                for each in found
            ),
        )


def _result(name: str, detail: str, labels: npt.NDArray[np.uint8], logits: Float32) -> ModelResult:
    return ModelResult(
        name=name,
        detail=detail,
        figures=measure(labels, logits),
        curves=curves_of(labels, answered_probabilities(logits), bins=CALIBRATION_BINS),
    )
