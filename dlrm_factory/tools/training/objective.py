"""Model in training: its loss and optimisers, its steps over batches, its logits of rows that are not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrm_factory.batch import to_dense, to_keyed_jagged_tensors
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.options import TrainingOptions
from dlrm_factory.factory import BuiltDLRM, DLRMFactory
from dlrm_factory.tools.data.dataset import ClickDataset, Int64, slices
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.training.module import TrainingBatch, TrainingModule
from dlrm_factory.tools.training.optimizers import Optimizers, fused_table_optimizer

__all__ = ["Objective", "PipelinedSteps", "PlainSteps", "Steps", "logits_of", "make_objective", "make_steps"]

_BATCH = 4096


class Objective:
    """The model, its loss (see `OutputsLoss`) and its optimisers."""

    def __init__(self, built: BuiltDLRM, options: TrainingOptions) -> None:
        self.built = built
        self.options = options
        self.module = TrainingModule(built.model, built.declaration, built.device)
        self.optimizers = Optimizers(built, options)

    def batch(
        self, clicks: ClickDataset, rows: Int64, *, device: torch.device | None = None
    ) -> TrainingBatch:
        """The samples ``rows`` (int64 [B]) on ``device``, the model's if None."""
        features, device = clicks.features(rows), device or self.built.device
        pooled, sequences = to_keyed_jagged_tensors(features, self.built.declaration, device=device)
        return TrainingBatch(
            dense=to_dense(features, device=device),
            pooled=pooled,
            sequences=sequences,
            labels=torch.from_numpy(clicks.labels[rows]).to(device),
        )

    def step(self, batch: TrainingBatch) -> torch.Tensor:
        """One step of all optimisers. Returns the batch's loss before it, a detached scalar."""
        self.optimizers.zero_grad()
        loss, detached = self.module(batch)
        loss.backward()
        self.optimizers.step()
        return detached

    def logits(self, batch: TrainingBatch) -> torch.Tensor:
        """float32 [B, probabilities], without gradients."""
        with torch.no_grad():
            return self.module.logits(batch)


def make_objective(declaration: DLRMDeclaration) -> Objective:
    """A fresh model of ``declaration``, drawn from its seed, ready to train on this process's rank."""
    fuse = fused_table_optimizer(declaration)
    built = DLRMFactory(declaration).build(mode="float", table_optimizer=fuse)
    return Objective(built, declaration.training)


def logits_of(
    objective: Objective, clicks: ClickDataset, rows: Int64, *, observe: Observer
) -> npt.NDArray[np.float32]:
    """Logits of ``rows``: float32 [len(rows), probabilities], on every rank. Collective over the ranks."""
    objective.module.eval()
    share = -(-len(rows) // dist.get_world_size())
    mine = _share(rows, share)
    logits = []
    done = 0
    for piece in slices(mine, _BATCH):
        logits.append(objective.logits(objective.batch(clicks, piece)))
        done += len(piece)
        observe(Progress(stage="evaluation", done=len(rows) * done // share, total=len(rows)))
    # A fused Adam counts lookups, and these were no steps.
    objective.optimizers.set_steps(objective.optimizers.unfused.steps)
    return _gathered(torch.cat(logits))[: len(rows)]


def _share(rows: Int64, share: int) -> Int64:
    """Rows of this rank. TorchRec's float tables need as many on every rank, so the last row may come again."""
    places = np.arange(share) + dist.get_rank() * share
    return rows[np.minimum(places, len(rows) - 1)]


def _gathered(logits: torch.Tensor) -> npt.NDArray[np.float32]:
    if dist.get_world_size() == 1:
        return logits.cpu().numpy()
    parts = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, logits.contiguous())
    return torch.cat(parts).cpu().numpy()


class Steps(Protocol):
    """Trains on batch after batch of some rows."""

    def begin(self, clicks: ClickDataset, batches: Iterator[Int64]) -> None:
        """Take the rows of each step, int64 [B], from ``batches``, until that ends."""
        ...

    def next(self) -> torch.Tensor:
        """One step. Returns the batch's loss before it, a detached scalar."""
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
        loss: torch.Tensor = self._pipeline.progress(self._batches)
        return loss

    def pause(self) -> None:
        self._pipeline.detach()

    def _host_batches(self, clicks: ClickDataset, batches: Iterator[Int64]) -> Iterator[TrainingBatch]:
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
