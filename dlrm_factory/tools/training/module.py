"""Module that is trained: the model and its loss, and the batches it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import ModuleError

__all__ = ["OutputsLoss", "TrainingBatch", "TrainingModule"]


@dataclass
class TrainingBatch(Pipelineable):
    """B labelled samples.

    Fields:
        dense: float32 [B, number of dense features].
        pooled, sequences: KeyedJaggedTensors of the pooled and of the sequence features; None without the latter.
        labels: float32 [B, probabilities] of 0 and 1; NaN where a sample does not count for one.
    """

    dense: torch.Tensor
    pooled: KeyedJaggedTensor
    sequences: KeyedJaggedTensor | None
    labels: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> TrainingBatch:
        sequences = self.sequences
        return TrainingBatch(
            dense=self.dense.to(device, non_blocking=non_blocking),
            pooled=self.pooled.to(device, non_blocking=non_blocking),
            sequences=None if sequences is None else sequences.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        for each in (self.dense, self.pooled, self.sequences, self.labels):
            if each is not None:
                each.record_stream(stream)

    def pin_memory(self) -> TrainingBatch:
        return TrainingBatch(
            dense=self.dense.pin_memory(),
            pooled=self.pooled.pin_memory(),
            sequences=None if self.sequences is None else self.sequences.pin_memory(),
            labels=self.labels.pin_memory(),
        )


class OutputsLoss(nn.Module):
    """Weighted sum of each probability's mean binary cross-entropy over the samples that count for it, in nats.

    forward(outputs float32 [B, C], labels float32 [B, probabilities], NaN where a sample does not count) → loss, a
    scalar. Several ranks' losses have the mean of one that had all
    their samples: each divides by its share of the samples that count on all of them. Collective then. ModuleError in
    training for outputs without a gradient.
    """

    columns: torch.Tensor
    weights: torch.Tensor

    def __init__(self, declaration: DLRMDeclaration, device: torch.device) -> None:
        super().__init__()
        outputs = declaration.probabilities
        self._model = declaration.architecture if declaration.module is None else declaration.module.module
        self._only = outputs[0] if len(outputs) == 1 else None
        columns = [declaration.columns_of(output.name).start for output in outputs]
        weights = [output.loss_weight for output in outputs]
        self.register_buffer("columns", torch.tensor(columns, device=device), persistent=False)
        self.register_buffer("weights", torch.tensor(weights, device=device), persistent=False)

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled() and not outputs.requires_grad:
            raise ModuleError(
                f"{self._model}: what forward returns depends on no weight, so it cannot be trained; is it detached, "
                "or computed under torch.no_grad()?"
            )
        logits = self.logits(outputs)
        if self._only is not None:
            loss = functional.binary_cross_entropy_with_logits(logits[:, 0], labels[:, 0])
            return loss if self._only.loss_weight == 1.0 else loss * self._only.loss_weight
        counted = ~labels.isnan()
        each = functional.binary_cross_entropy_with_logits(
            logits, labels.nan_to_num(0.0), weight=counted.float(), reduction="none"
        )
        counts = counted.sum(dim=0, dtype=torch.float32)
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
            counts = counts / dist.get_world_size()
        means = each.sum(dim=0) / torch.where(counts > 0, counts, 1.0)
        return (self.weights * means).sum()

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Logits of the probabilities, float32 [B, probabilities]."""
        return outputs if outputs.shape[1] == len(self.columns) else outputs[:, self.columns]


class TrainingModule(nn.Module):
    """A model and its loss.

    forward(batch) → loss, and the same detached: both scalars, of all samples of the batch.
    """

    def __init__(self, model: nn.Module, declaration: DLRMDeclaration, device: torch.device) -> None:
        super().__init__()
        self.model = model
        # A module of its own, so that TorchRec's pipeline need not trace it.
        self.loss = OutputsLoss(declaration, device)

    def forward(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.loss(self.model(batch.dense, batch.pooled, batch.sequences), batch.labels)
        return loss, loss.detach()

    def logits(self, batch: TrainingBatch) -> torch.Tensor:
        """Logits of the probabilities, float32 [B, probabilities]."""
        return self.loss.logits(self.model(batch.dense, batch.pooled, batch.sequences))
