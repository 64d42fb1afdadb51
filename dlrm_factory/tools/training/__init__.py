"""Tables of clicks → a trained checkpoint."""

from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.metrics.history import Evaluation
from dlrm_factory.tools.training.report import TrainingReport
from dlrm_factory.tools.training.train import train

__all__ = ["Evaluation", "Observer", "Progress", "TrainingReport", "train"]
