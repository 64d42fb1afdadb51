"""Training settings that do best on the validation part, searched for within a given time."""

from dlrm_factory.tools.tuning.picture import check_format, draw_tuning
from dlrm_factory.tools.tuning.results import TuningReport, TuningTrial
from dlrm_factory.tools.tuning.space import Settings
from dlrm_factory.tools.tuning.tune import tune

__all__ = ["Settings", "TuningReport", "TuningTrial", "check_format", "draw_tuning", "tune"]
