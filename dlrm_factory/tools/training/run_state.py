"""Where a run is: all that a snapshot keeps beside tensors."""

from __future__ import annotations

import msgspec

from dlrm_factory.tools.metrics.history import Evaluation
from dlrm_factory.tools.training.losses import LossSum

__all__ = ["RunState", "Search"]


class Search(msgspec.Struct, kw_only=True, frozen=True):
    """The part of a run that found how long to train, where another trains anew for as long.

    Fields:
        goal: samples after which the other is over.
        samples, steps: that this one took.
        stopped: by early stopping.
        history: its evaluations.
    """

    goal: int
    samples: int
    steps: int
    stopped: bool
    history: list[Evaluation]


class RunState(msgspec.Struct, kw_only=True):
    """A run's place between two steps.

    Fields:
        epoch: the epoch that the next step belongs to, from 0.
        row: how many rows of that epoch's order are used up, by all ranks.
        step: optimiser steps taken.
        seconds: of training so far, without evaluation and snapshots.
        stopped: by early stopping.
        best_step: the step whose weights are kept for early stopping.
        history: every evaluation.
        search: the part of the run before this one; None in that part, and in a run without another.
        epoch_loss, recent_loss: this rank's losses in the latest epoch, and since the latest evaluation.
    """

    epoch: int = 0
    row: int = 0
    step: int = 0
    seconds: float = 0.0
    stopped: bool = False
    best_step: int | None = None
    history: list[Evaluation] = msgspec.field(default_factory=list)
    search: Search | None = None
    epoch_loss: LossSum = msgspec.field(default_factory=LossSum)
    recent_loss: LossSum = msgspec.field(default_factory=LossSum)

    @property
    def all_steps(self) -> int:
        """Optimiser steps taken in both parts of the run."""
        return self.step + (0 if self.search is None else self.search.steps)

    def best(self) -> Evaluation | None:
        """The evaluation whose weights are kept."""
        return next((e for e in self.history if e.step == self.best_step), None)

    def fruitless(self) -> int:
        """Evaluations since the best one."""
        return sum(e.step > (self.best_step or 0) for e in self.history)
