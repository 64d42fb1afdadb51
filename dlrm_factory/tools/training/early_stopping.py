"""Early stopping: the best weights so far, and when to give up."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import DataError
from dlrm_factory.tools.metrics.history import Evaluation
from dlrm_factory.tools.training.best_weights import BestWeights
from dlrm_factory.tools.training.objective import Objective
from dlrm_factory.tools.training.run_state import RunState

__all__ = ["EarlyStopping", "check_labels_differ"]


class EarlyStopping:
    """Keeps the weights of the evaluation with the highest AUC on the validation rows, and their held-out logits.

    Fields:
        weights: the copy.
        logits: float32 [held-out rows]; None before the first evaluation.
    """

    def __init__(self, objective: Objective, patience: int) -> None:
        self._patience = patience
        self.weights = BestWeights(objective)
        self.logits: npt.NDArray[np.float32] | None = None

    def make_room(self, held_out_rows: int) -> None:
        """For logits that a snapshot holds."""
        self.logits = np.zeros(held_out_rows, dtype=np.float32)

    def judge(self, state: RunState, evaluation: Evaluation, logits: npt.NDArray[np.float32]) -> None:
        """Keep what ``evaluation`` saw if it is the best, else perhaps stop the run.

        All ranks judge the same figures, so they agree.
        """
        best = state.best()
        auc = evaluation.validation_auc
        if best is None or (auc is not None and auc > (best.validation_auc or 0.0)):
            state.best_step, self.logits = evaluation.step, logits
            self.weights.keep()
        elif state.fruitless() >= self._patience:
            state.stopped = True


def check_labels_differ(labels: npt.NDArray[np.float32]) -> None:
    """DataError if ``labels`` of the validation rows are all alike: their AUC is undefined."""
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"$.training.early_stopping goes by the AUC of the validation rows, but {_alike(labels)}; "
            "add rows, raise validation, or leave early_stopping out"
        )


def _alike(labels: npt.NDArray[np.float32]) -> str:
    return f"all {len(labels)} of them have label {labels[0]:.0f}" if len(labels) else "there are none"
