"""The learning rates' course: warm-up, then decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlrm_factory.config.declaration import TrainingOptions

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What both declared learning rates are multiplied with in each step.

    Warm-up goes by steps: step s of W gets s / W. Decay goes by samples, so that it keeps its course when a run goes on
    with another number of ranks: linear gives 1 - p and cosine (1 + cos(πp)) / 2, where p is the share of the samples
    after warm-up that were seen before the step. So the last step's rate is near 0, not 0.

    Fields:
        samples: of the whole run, all epochs and ranks.
        step_samples: of a step, all ranks together.
    """

    options: TrainingOptions
    samples: int
    step_samples: int

    def factor(self, *, step: int, seen: int) -> float:
        """For the step numbered ``step`` (from 1), before which ``seen`` samples were trained on."""
        warmup = self.options.warmup_steps
        if step <= warmup:
            return step / warmup
        first = warmup * self.step_samples
        p = min(max((seen - first) / max(self.samples - first, 1), 0.0), 1.0)
        if self.options.learning_rate_decay == "linear":
            return 1.0 - p
        if self.options.learning_rate_decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * p))
        return 1.0
