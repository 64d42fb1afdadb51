"""Early stopping: a copy of the weights of the best evaluation so far, and the end of a run that gets no better."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.errors import DataError
from dlrm_factory.tools.metrics.history import Evaluation
from dlrm_factory.tools.training.objective import Objective
from dlrm_factory.tools.training.run_state import RunState
from dlrm_factory.weights.loading import FloatShard, float_shards

__all__ = ["BestWeights", "EarlyStopping", "check_labels_differ"]


class BestWeights:
    """Copy of this rank's weights in main memory: as much again as its share of the tables."""

    def __init__(self, objective: Objective) -> None:
        """Allocates the copy; it holds nothing before `keep`."""
        self._objective = objective
        self.dense = {
            name: torch.empty_like(p, device="cpu") for name, p in objective.optimizers.dense.items()
        }
        self._tables = [torch.empty(s.weight.shape) for s in self._shards()]

    def tables(self) -> Iterator[tuple[FloatShard, torch.Tensor]]:
        """Each of this rank's parts of tables, and the copy of its weight."""
        return zip(self._shards(), self._tables, strict=True)

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the model's weights."""
        for name, parameter in self._objective.optimizers.dense.items():
            self.dense[name].copy_(parameter)
        for shard, copy in self.tables():
            copy.copy_(shard.weight)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the copy back into the model."""
        for name, parameter in self._objective.optimizers.dense.items():
            parameter.copy_(self.dense[name])
        for shard, copy in self.tables():
            shard.weight.copy_(copy)

    def _shards(self) -> list[FloatShard]:
        return list(float_shards(self._objective.built.model))


class EarlyStopping:
    """Keeps the weights of the evaluation with the highest AUC on the validation rows, and their held-out logits.

    Of several outputs it is the AUC of the first probability.

    Fields:
        weights: the copy.
        logits: float32 [held-out rows, probabilities]; None before the first evaluation.
    """

    def __init__(self, objective: Objective, patience: int) -> None:
        self._patience = patience
        self._outputs = len(objective.built.declaration.probabilities)
        self.weights = BestWeights(objective)
        self.logits: npt.NDArray[np.float32] | None = None

    def allocate_logits(self, held_out_rows: int) -> None:
        """Allocate the logits, which a snapshot then fills."""
        self.logits = np.zeros((held_out_rows, self._outputs), dtype=np.float32)

    def update(self, state: RunState, evaluation: Evaluation, logits: npt.NDArray[np.float32]) -> None:
        """Keep what ``evaluation`` saw if it is the best, else perhaps stop the run.

        All ranks are given the same figures, so they agree.
        """
        best = state.best()
        auc = evaluation.validation_auc
        if best is None or (auc is not None and auc > (best.validation_auc or 0.0)):
            state.best_step, self.logits = evaluation.step, logits
            self.weights.keep()
        elif state.evals_without_improvement() >= self._patience:
            state.stopped = True


def check_labels_differ(labels: npt.NDArray[np.float32]) -> None:
    """DataError if ``labels`` of the validation rows, float32 [n] of the first probability, are all alike.

    Their AUC is undefined then.
    """
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"$.training.early_stopping goes by the AUC of the validation rows, but {_alike(labels)}; "
            "add rows, raise validation, or leave early_stopping out"
        )


def _alike(labels: npt.NDArray[np.float32]) -> str:
    return f"all {len(labels)} of them have label {labels[0]:.0f}" if len(labels) else "there are none"
