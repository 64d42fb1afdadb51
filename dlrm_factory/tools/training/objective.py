"""What is trained: the model and its loss."""

from __future__ import annotations

import torch
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRMTrain

from dlrm_factory.batch import to_dense, to_keyed_jagged_tensor
from dlrm_factory.config.declaration import DLRMDeclaration, TrainingOptions
from dlrm_factory.factory import BuiltDLRM, DLRMFactory
from dlrm_factory.tools.data.dataset import ClickDataset, Int64
from dlrm_factory.tools.training.optimizers import Optimizers, fused_table_optimizer

__all__ = ["Objective", "make_objective"]


class Objective:
    """The model, its loss (TorchRec's `DLRMTrain`: binary cross-entropy of logits) and its optimisers."""

    def __init__(self, built: BuiltDLRM, options: TrainingOptions) -> None:
        self.built = built
        self.options = options
        self.module = DLRMTrain(built.model)
        self.optimizers = Optimizers(built, options)

    def batch(self, clicks: ClickDataset, rows: Int64, *, device: torch.device | None = None) -> Batch:
        """The samples ``rows`` (int64 [B]) on ``device``, the model's if None."""
        features, device = clicks.features(rows), device or self.built.device
        return Batch(
            dense_features=to_dense(features, device=device),
            sparse_features=to_keyed_jagged_tensor(features, self.built.declaration, device=device),
            labels=torch.from_numpy(clicks.labels[rows]).to(device),
        )

    def step(self, batch: Batch) -> torch.Tensor:
        """One step of all optimisers. Returns the batch's mean loss before it, a detached scalar."""
        self.optimizers.zero_grad()
        loss, (detached, _, _) = self.module(batch)
        loss.backward()
        self.optimizers.step()
        return detached

    def logits(self, batch: Batch) -> torch.Tensor:
        """float32 [B], without gradients."""
        with torch.no_grad():
            _, (_, logits, _) = self.module(batch)
        return logits


def make_objective(declaration: DLRMDeclaration) -> Objective:
    """A fresh model of ``declaration``, drawn from its seed, ready to train on this process's rank."""
    fuse = fused_table_optimizer(declaration)
    built = DLRMFactory(declaration).build(mode="float", table_optimizer=fuse)
    return Objective(built, declaration.training)
