"""Quality of a trained model, on rows that it has not seen."""

from dlrm_factory.tools.evaluation.evaluate import evaluate
from dlrm_factory.tools.evaluation.json_report import as_json
from dlrm_factory.tools.evaluation.report import check_report_folder, write_report
from dlrm_factory.tools.evaluation.results import Evaluation
from dlrm_factory.tools.evaluation.samples import EvaluationSource

__all__ = ["Evaluation", "EvaluationSource", "as_json", "check_report_folder", "evaluate", "write_report"]
