"""Another version of a model on a running server: brought, compared, made the default, taken back."""

from dlrm_factory.tools.rollout.going_back import roll_back
from dlrm_factory.tools.rollout.judging import RolloutBounds
from dlrm_factory.tools.rollout.keeping import remove_kept
from dlrm_factory.tools.rollout.proxy import proxy_config
from dlrm_factory.tools.rollout.rollout import RolloutOptions, RolloutResult, roll_out
from dlrm_factory.tools.rollout.state import RolloutFile, read_history

__all__ = [
    "RolloutBounds",
    "RolloutFile",
    "RolloutOptions",
    "RolloutResult",
    "proxy_config",
    "read_history",
    "remove_kept",
    "roll_back",
    "roll_out",
]
