"""A copy of the weights of the best evaluation so far, for early stopping."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dlrm_factory.tools.training.objective import Objective
from dlrm_factory.weights.loading import FloatShard, float_shards

__all__ = ["BestWeights"]


class BestWeights:
    """This rank's weights, in main memory: as much again as its share of the tables."""

    def __init__(self, objective: Objective) -> None:
        """Allocates the copy; it holds nothing before `keep`."""
        self._objective = objective
        self.dense = {
            name: torch.empty_like(p, device="cpu") for name, p in objective.optimizers.dense.items()
        }
        self._tables = [torch.empty(s.weight.shape) for s in self._shards()]

    def tables(self) -> Iterator[tuple[FloatShard, torch.Tensor]]:
        """Each of this rank's parts of tables, and the copy of its weight."""
        return zip(self._shards(), self._tables, strict=True)

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the model's weights."""
        for name, parameter in self._objective.optimizers.dense.items():
            self.dense[name].copy_(parameter)
        for shard, copy in self.tables():
            copy.copy_(shard.weight)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the copy back into the model."""
        for name, parameter in self._objective.optimizers.dense.items():
            parameter.copy_(self.dense[name])
        for shard, copy in self.tables():
            shard.weight.copy_(copy)

    def _shards(self) -> list[FloatShard]:
        return list(float_shards(self._objective.built.model))
