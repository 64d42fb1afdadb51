"""State of a run between two steps, which a snapshot keeps beside tensors; sums of losses, and a clock."""

from __future__ import annotations

import time

import msgspec
import torch
import torch.distributed as dist

from dlrm_factory.tools.metrics.history import Evaluation

__all__ = ["Clock", "LossSum", "Losses", "RunState", "Search"]


class LossSum(msgspec.Struct, kw_only=True):
    """Losses times samples, in nats, and the samples."""

    total: float = 0.0
    samples: int = 0

    def add(self, total: float, samples: int) -> None:
        self.total += total
        self.samples += samples

    def over_ranks(self) -> LossSum:
        """The sum over all ranks. Collective."""
        if dist.get_world_size() == 1:
            return LossSum(total=self.total, samples=self.samples)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        both = torch.tensor([self.total, self.samples], dtype=torch.float64, device=device)
        dist.all_reduce(both)
        return LossSum(total=both[0].item(), samples=int(both[1].item()))

    @property
    def mean(self) -> float:
        """Mean loss in nats; 0 without samples."""
        return self.total / max(self.samples, 1)


class Losses:
    """The latest losses of this rank, on their way into the sums."""

    def __init__(self) -> None:
        self._recent = torch.zeros((), dtype=torch.float64)
        self._samples = 0

    def add(self, loss: torch.Tensor, samples: int) -> None:
        """Take ``loss``, the mean over ``samples`` samples, a scalar."""
        self._recent = self._recent.to(loss.device) + loss.double() * samples
        self._samples += samples

    def add_to(self, *sums: LossSum) -> float:
        """Add the losses since the last call to ``sums``. Returns their mean in nats, NaN without any."""
        total, samples = self._recent.item(), self._samples
        for each in sums:
            each.add(total, samples)
        self._recent, self._samples = torch.zeros_like(self._recent), 0
        return total / samples if samples else float("nan")


class Search(msgspec.Struct, kw_only=True, frozen=True):
    """The part of a run that found how long to train, where another trains anew for as long.

    Fields:
        passes: epochs after which the other is over; the rest of them is the share of one.
        samples, steps: that this one took.
        stopped: by early stopping.
        history: its evaluations.
    """

    passes: float
    samples: int
    steps: int
    stopped: bool
    history: list[Evaluation]


class RunState(msgspec.Struct, kw_only=True):
    """A run's place between two steps.

    Fields:
        epoch: the epoch that the next step belongs to, from 0.
        row: how many rows of that epoch's order are trained on, by all ranks.
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

    def evals_without_improvement(self) -> int:
        """Evaluations since the best one."""
        return sum(e.step > (self.best_step or 0) for e in self.history)


class Clock:
    """Seconds of training, and samples a second since the latest report."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self.restart()

    def restart(self) -> None:
        self._started = self._reported = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def speed(self, samples: int) -> float:
        now = time.perf_counter()
        speed = (samples - self._samples) / max(now - self._reported, 1e-9)
        self._samples, self._reported = samples, now
        return speed
