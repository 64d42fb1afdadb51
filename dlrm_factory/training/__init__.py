"""Tables of clicks → a trained checkpoint."""

from dlrm_factory.training.history import Evaluation
from dlrm_factory.training.progress import Observer, Progress
from dlrm_factory.training.report import TrainingReport
from dlrm_factory.training.train import train

__all__ = ["Evaluation", "Observer", "Progress", "TrainingReport", "train"]
