"""What is trained, and by which optimisers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.optimizers import in_backward_optimizer_filter

from dlrm_factory.batch import to_dense, to_keyed_jagged_tensor
from dlrm_factory.config.declaration import DLRMDeclaration, TrainingOptions
from dlrm_factory.factory import BuiltDLRM, DLRMFactory
from dlrm_factory.training.dataset import ClickDataset, Int64

__all__ = ["Objective", "make_objective"]


class Objective:
    """The model, its loss (TorchRec's `DLRMTrain`: binary cross-entropy of logits) and the dense optimiser.

    The tables' optimiser is fused into their backward pass: it updates the rows that were looked up, at once.
    """

    def __init__(self, built: BuiltDLRM, options: TrainingOptions) -> None:
        self.built = built
        self.module = DLRMTrain(built.model)
        dense = dict(in_backward_optimizer_filter(built.model.named_parameters()))
        self.optimizer = torch.optim.Adam(dense.values(), lr=options.learning_rate)

    def batch(self, clicks: ClickDataset, rows: Int64) -> Batch:
        """The samples ``rows`` (int64 [B]) on the model's device."""
        features, device = clicks.features(rows), self.built.device
        return Batch(
            dense_features=to_dense(features, device=device),
            sparse_features=to_keyed_jagged_tensor(features, self.built.declaration, device=device),
            labels=torch.from_numpy(clicks.labels[rows]).to(device),
        )

    def step(self, batch: Batch) -> torch.Tensor:
        """One optimiser step. Returns the batch's mean loss before it, a detached scalar."""
        self.optimizer.zero_grad()
        loss, (detached, _, _) = self.module(batch)
        loss.backward()
        self.optimizer.step()
        return detached

    def logits(self, batch: Batch) -> torch.Tensor:
        """float32 [B], without gradients."""
        with torch.no_grad():
            _, (_, logits, _) = self.module(batch)
        return logits


def make_objective(declaration: DLRMDeclaration) -> Objective:
    """A fresh model of ``declaration``, drawn from its seed, ready to train on this process's rank."""
    options = declaration.training

    def fuse_row_wise_adagrad(parameters: Iterable[nn.Parameter]) -> None:
        apply_optimizer_in_backward(RowWiseAdagrad, parameters, {"lr": options.sparse_learning_rate})

    built = DLRMFactory(declaration).build(mode="float", table_optimizer=fuse_row_wise_adagrad)
    return Objective(built, options)
