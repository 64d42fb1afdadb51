"""Tables of clicks → a trained checkpoint."""

from dlrm_factory.training.loop import Progress
from dlrm_factory.training.train import TrainingReport, train

__all__ = ["Progress", "TrainingReport", "train"]
