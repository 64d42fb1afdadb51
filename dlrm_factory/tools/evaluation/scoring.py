"""Samples → labels and scores, a block at a time; what is kept of each sample is a few bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.evaluation.models import EvaluatedModel
from dlrm_factory.tools.evaluation.samples import Samples
from dlrm_factory.tools.evaluation.slice_values import SliceValues

__all__ = ["Scored", "score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """N samples, scored.

    Fields:
        labels: uint8 [N] of 0 and 1.
        logits: float32 [N].
        true_logits: the ground truth's, float64 [N]; None for real clicks.
        values: the column to cut them by; None without one.
    """

    labels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    true_logits: npt.NDArray[np.float64] | None
    values: SliceValues | None


def score(model: EvaluatedModel, samples: Samples, *, column: str | None, observe: Observer) -> Scored:
    """All samples, scored by ``model``. DataError if there are none, or a score is no finite number."""
    labels, logits, truths = [], [], []
    values = None if column is None else slice_values(model.declaration, column)
    done = 0
    for block in samples.blocks():
        labels.append(block.labels)
        logits.append(model.scorer.logits(block.batch))
        if block.true_logits is not None:
            truths.append(block.true_logits)
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
    )


def slice_values(declaration: DLRMDeclaration, column: str) -> SliceValues:
    """What collects ``column``, a declared feature or any other."""
    sparse = next((feature for feature in declaration.sparse_features if feature.name == column), None)
    several = sparse is not None and sparse.max_length > 1
    return SliceValues(
        is_id=sparse is not None, separator=declaration.training.separator if several else None
    )
