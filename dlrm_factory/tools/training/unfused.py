"""Optimiser steps for tables whose lookup has no fused optimiser: fbgemm's formulas on whole gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen
from torch import nn

from dlrm_factory.config.declaration import TrainingOptions
from dlrm_factory.weights.loading import FloatShard, float_shards

__all__ = ["UnfusedTables"]

_EPSILON = 1e-8  # fbgemm's, for all of them
_BETA1, _BETA2 = 0.9, 0.999


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of a table, its gradient's place in the lookup's, and its optimiser's state."""

    shard: FloatShard
    state: dict[str, torch.Tensor]

    def gradient(self) -> torch.Tensor | None:
        """float32 [rows, columns]; None if nothing was looked up yet."""
        whole, weight = self.shard.lookup.weights, self.shard.weight
        if whole.grad is None:
            return None
        start = weight.storage_offset() - whole.storage_offset()
        return whole.grad.view(-1)[start : start + weight.numel()].view(weight.shape)


class UnfusedTables:
    """Data-parallel tables, and all tables under Adam on CPU, where fbgemm has none.

    Only rows with a gradient move, and only their state, as with a fused optimiser. So a table trains alike whatever
    its sharding. What differs is the cost: gradients are as large as the tables.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions) -> None:
        self.learning_rate = options.sparse_learning_rate
        self.steps = 0
        self._rule, states = _RULES[options.sparse_optimizer]
        self._lookups: dict[int, nn.Module] = {}
        self._parts: list[_Part] = []
        for shard in float_shards(model):
            if isinstance(shard.lookup, DenseTableBatchedEmbeddingBagsCodegen):
                self._lookups[id(shard.lookup)] = shard.lookup
                state = {name: shape(shard.weight) for name, shape in states.items()}
                self._parts.append(_Part(shard=shard, state=state))

    def states(self) -> Iterator[tuple[FloatShard, Mapping[str, torch.Tensor]]]:
        """Each part with its live state, float32 [rows] or [rows, columns] by name."""
        for part in self._parts:
            yield part.shard, part.state

    def zero_grad(self) -> None:
        for lookup in self._lookups.values():
            lookup.weights.grad = None

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for part in self._parts:
            gradient = part.gradient()
            if gradient is None:
                continue
            rows = gradient.ne(0).any(dim=1).nonzero().squeeze(1)
            state = {name: tensor[rows] for name, tensor in part.state.items()}
            direction = self._rule(gradient[rows], state, self.steps)
            for name, tensor in part.state.items():
                tensor[rows] = state[name]
            part.shard.weight.index_add_(0, rows, direction, alpha=-self.learning_rate)


# Each takes the gradient of n rows, float32 [n, columns], and their state, which it updates; gives the way down.
_State = dict[str, torch.Tensor]
_Rule = Callable[[torch.Tensor, _State, int], torch.Tensor]


def _sgd(gradient: torch.Tensor, state: _State, step: int) -> torch.Tensor:
    return gradient


def _adagrad(gradient: torch.Tensor, state: _State, step: int) -> torch.Tensor:
    state["sum"] = state["sum"] + gradient**2
    return gradient / (state["sum"].sqrt() + _EPSILON)


def _row_wise_adagrad(gradient: torch.Tensor, state: _State, step: int) -> torch.Tensor:
    state["sum"] = state["sum"] + (gradient**2).mean(dim=1)
    return gradient / (state["sum"].sqrt() + _EPSILON).unsqueeze(1)


def _adam(gradient: torch.Tensor, state: _State, step: int) -> torch.Tensor:
    state["exp_avg"] = _BETA1 * state["exp_avg"] + (1 - _BETA1) * gradient
    state["exp_avg_sq"] = _BETA2 * state["exp_avg_sq"] + (1 - _BETA2) * gradient**2
    mean = state["exp_avg"] / (1 - _BETA1**step)
    return mean / ((state["exp_avg_sq"] / (1 - _BETA2**step)).sqrt() + _EPSILON)


def _of_a_row(weight: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(weight), device=weight.device)


_Shape = Callable[[torch.Tensor], torch.Tensor]
_RULES: dict[str, tuple[_Rule, dict[str, _Shape]]] = {
    "sgd": (_sgd, {}),
    "adagrad": (_adagrad, {"sum": torch.zeros_like}),
    "row_wise_adagrad": (_row_wise_adagrad, {"sum": _of_a_row}),
    "adam": (_adam, {"exp_avg": torch.zeros_like, "exp_avg_sq": torch.zeros_like}),
}
