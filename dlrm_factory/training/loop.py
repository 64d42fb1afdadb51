"""The training loop and the evaluation, over rows of a `ClickDataset`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from dlrm_factory.errors import ConfigError
from dlrm_factory.training.dataset import ClickDataset, Int64, slices
from dlrm_factory.training.objective import Objective
from dlrm_factory.training.split import epoch_order

__all__ = ["Observer", "Progress", "held_out_logits", "train_epoch"]

_REPORT_STEPS = 20  # reading the loss waits for the device
_EVALUATION_BATCH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage is.

    Fields:
        done, total: samples; the total is None if unknown.
        loss: mean over the latest steps, in nats.
    """

    stage: Literal["features", "data", "training", "evaluation"]
    done: int
    total: int | None = None
    loss: float | None = None


Observer = Callable[[Progress], None]


def train_epoch(
    objective: Objective, clicks: ClickDataset, rows: Int64, *, epoch: int, observe: Observer
) -> float:
    """One pass over ``rows`` in the epoch's order.

    Returns the mean training loss of this rank's samples, in nats. ConfigError if it is no number any more.
    """
    options = objective.built.declaration.training
    order = epoch_order(rows, seed=options.seed, epoch=epoch)
    objective.module.train()
    losses = _Mean()
    done = 0
    for step, (mine, everyone) in enumerate(_rank_slices(order, options.batch_size), start=1):
        losses.add(objective.step(objective.batch(clicks, mine)), len(mine))
        done += everyone
        if step % _REPORT_STEPS == 0 or done == len(order):
            observe(
                Progress(
                    stage="training",
                    done=epoch * len(order) + done,
                    total=options.epochs * len(order),
                    loss=_checked(losses.latest()),
                )
            )
    return _checked(losses.mean())


def held_out_logits(
    objective: Objective, clicks: ClickDataset, rows: Int64, *, observe: Observer
) -> npt.NDArray[np.float32]:
    """Logits of ``rows``: float32 [len(rows)]. With several ranks each computes all of them."""
    objective.module.eval()
    logits = []
    done = 0
    for piece in slices(rows, _EVALUATION_BATCH):
        logits.append(objective.logits(objective.batch(clicks, piece)).cpu().numpy())
        done += len(piece)
        observe(Progress(stage="evaluation", done=done, total=len(rows)))
    return np.concatenate(logits)


def _rank_slices(order: Int64, batch_size: int) -> Iterator[tuple[Int64, int]]:
    """Each step's rows of this rank, and how many rows of ``order`` it uses up.

    TorchRec's float tables need batches of one size on all ranks, so up to ranks - 1 rows of the last step
    are left out.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for rows in slices(order, batch_size * ranks):
        share = len(rows) // ranks
        if share:
            yield rows[rank * share : (rank + 1) * share], len(rows)


class _Mean:
    """Mean of losses weighted by samples, kept on the device: of all, and of those since last asked."""

    def __init__(self) -> None:
        self._total = self._recent = torch.zeros((), dtype=torch.float64)
        self._samples = self._recent_samples = 0

    def add(self, loss: torch.Tensor, samples: int) -> None:
        self._recent = self._recent.to(loss.device) + loss.double() * samples
        self._recent_samples += samples

    def latest(self) -> float:
        mean = self._recent.item() / max(self._recent_samples, 1)
        self._fold()
        return mean

    def mean(self) -> float:
        self._fold()
        return self._total.item() / max(self._samples, 1)

    def _fold(self) -> None:
        self._total = self._total.to(self._recent.device) + self._recent
        self._samples += self._recent_samples
        self._recent, self._recent_samples = torch.zeros_like(self._recent), 0


def _checked(loss: float) -> float:
    if not math.isfinite(loss):
        raise ConfigError(
            [
                f"$.training.learning_rate: the training loss became {loss}; lower learning_rate or "
                "sparse_learning_rate, or use transform: log1p for dense features with large values"
            ]
        )
    return loss
