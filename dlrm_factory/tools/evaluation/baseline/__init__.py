"""A simpler model on the same rows."""

from dlrm_factory.tools.evaluation.baseline.lightgbm import (
    BASELINE,
    TreeObserver,
    check_baseline,
    train_baseline,
)

__all__ = ["BASELINE", "TreeObserver", "check_baseline", "train_baseline"]
