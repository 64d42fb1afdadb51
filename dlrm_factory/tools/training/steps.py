"""One step after another: the plain way, or with the next batches under way while one is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrm_factory.tools.data.dataset import ClickDataset, Int64
from dlrm_factory.tools.training.objective import Objective

__all__ = ["PipelinedSteps", "PlainSteps", "Steps", "make_steps"]


class Steps(Protocol):
    """Trains on batch after batch of some rows."""

    def begin(self, clicks: ClickDataset, batches: Iterator[Int64]) -> None:
        """Take the rows of each step, int64 [B], from ``batches``, until that ends."""
        ...

    def next(self) -> torch.Tensor:
        """One step. Returns the batch's mean loss before it, a detached scalar."""
        ...

    def pause(self) -> None:
        """Leave the model free for an evaluation; `next` goes on."""
        ...


class PlainSteps:
    """A batch is read when its step comes."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def begin(self, clicks: ClickDataset, batches: Iterator[Int64]) -> None:
        self._batches = (self._objective.batch(clicks, rows) for rows in batches)

    def next(self) -> torch.Tensor:
        self._objective.module.train()
        return self._objective.step(next(self._batches))

    def pause(self) -> None:
        pass


class PipelinedSteps:
    """TorchRec's `TrainPipelineSparseDist`: while a batch is computed, the ids of the next one are exchanged
    between the ranks, and the one after that is copied to the device.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        device = objective.built.device
        self._pipeline = TrainPipelineSparseDist(objective.module, objective.optimizers, device)

    def begin(self, clicks: ClickDataset, batches: Iterator[Int64]) -> None:
        self._batches = self._host_batches(clicks, batches)

    def next(self) -> torch.Tensor:
        self._objective.module.train()
        loss, _, _ = self._pipeline.progress(self._batches)
        return loss

    def pause(self) -> None:
        self._pipeline.detach()

    def _host_batches(self, clicks: ClickDataset, batches: Iterator[Int64]) -> Iterator[Batch]:
        host = torch.device("cpu")
        for rows in batches:
            batch = self._objective.batch(clicks, rows, device=host)
            # Only pinned memory is copied while the device computes.
            yield batch.pin_memory() if self._objective.built.device.type == "cuda" else batch


def make_steps(objective: Objective) -> Steps:
    """Pipelined on CUDA; plain on CPU, where there is no copy to hide and the pipeline is no faster."""
    if objective.built.device.type == "cuda":
        return PipelinedSteps(objective)
    return PlainSteps(objective)
