"""Progress of a run, and its observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dlrm_factory.tools.metrics.history import Evaluation

__all__ = ["Observer", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a stage.

    Fields:
        done, total: samples; the total is None if unknown.
        loss: mean over the latest steps, in nats.
        step: optimiser steps taken.
        learning_rates: of the dense optimiser and of the tables' one, in the latest step.
        samples_per_second: over the latest steps, all ranks together.
        evaluation: what an evaluation found, at its end.
    """

    stage: Literal["split", "features", "data", "training", "refit", "evaluation"]
    done: int
    total: int | None = None
    loss: float | None = None
    step: int | None = None
    learning_rates: tuple[float, float] | None = None
    samples_per_second: float | None = None
    evaluation: Evaluation | None = None


Observer = Callable[[Progress], None]
