"""Optimisers of a model in training: of its dense parts, and of its tables, fused into the backward pass or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.optim import RowWiseAdagrad

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.options import TrainingOptions
from dlrm_factory.factory import BuiltDLRM, TableOptimizer
from dlrm_factory.model.model import is_table_key, state_key
from dlrm_factory.model.plan import has_fused_optimizer
from dlrm_factory.weights.loading import FloatShard, float_shards

__all__ = ["MAX_ADAM_VALUES", "Optimizers", "UnfusedTables", "fused_table_optimizer"]

MAX_ADAM_VALUES = (
    4_000_000  # of all tables: up to here Adam pays on CPU, where a step passes over every value
)
_EPSILON = 1e-8  # fbgemm's, for all of them
_BETA1, _BETA2 = 0.9, 0.999

# Each takes the gradient of n rows, float32 [n, columns], and their state, which it updates; gives the way down.
_State = dict[str, torch.Tensor]
_Rule = Callable[[torch.Tensor, _State, int], torch.Tensor]
_Shape = Callable[[torch.Tensor], torch.Tensor]
_DENSE = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
_FUSED = {
    "row_wise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


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


_RULES: dict[str, tuple[_Rule, dict[str, _Shape]]] = {
    "sgd": (_sgd, {}),
    "adagrad": (_adagrad, {"sum": torch.zeros_like}),
    "row_wise_adagrad": (_row_wise_adagrad, {"sum": _of_a_row}),
    "adam": (_adam, {"exp_avg": torch.zeros_like, "exp_avg_sq": torch.zeros_like}),
}


def fused_table_optimizer(declaration: DLRMDeclaration) -> TableOptimizer | None:
    """Fuses the declared optimiser into the tables' backward pass, for `DLRMFactory.build`; None if it cannot be."""
    options = declaration.training
    if not has_fused_optimizer(declaration, declaration.sharding.device):
        return None

    def fuse(parameters: Iterable[nn.Parameter]) -> None:
        optimizer = _FUSED[options.sparse_optimizer]
        apply_optimizer_in_backward(optimizer, parameters, {"lr": options.sparse_learning_rate})

    return fuse


class Optimizers:
    """Pair of optimisers behind `zero_grad` and `step`, as TorchRec's train pipeline wants them.

    Fused tables have moved when the backward pass is over; `step` moves the rest.

    Fields:
        dense: the dense parameters by state dict key.
        rates: the dense and the tables' learning rate.
    """

    def __init__(self, built: BuiltDLRM, options: TrainingOptions) -> None:
        self._options = options
        self._model = built.model
        named = ((state_key(name), parameter) for name, parameter in built.model.named_parameters())
        self.dense: dict[str, nn.Parameter] = {k: p for k, p in named if not is_table_key(k)}
        self.dense_optimizer = _DENSE[options.optimizer](self.dense.values(), lr=options.learning_rate)
        self.unfused = UnfusedTables(built.model, options)
        shards = float_shards(built.model)
        lookups = {id(shard.lookup): shard.lookup for shard in shards if _is_fused(shard)}
        self._fused = list(lookups.values())
        self.rates = (options.learning_rate, options.sparse_learning_rate)

    def zero_grad(self) -> None:
        self.dense_optimizer.zero_grad()
        self.unfused.zero_grad()

    def step(self) -> None:
        """Clips the dense gradients, moves the dense parameters and the tables without a fused optimiser."""
        if self._options.gradient_clipping is not None:
            # The ranks' gradients have been averaged by now, so all ranks find the same norm.
            nn.utils.clip_grad_norm_(self.dense.values(), self._options.gradient_clipping)
        self.dense_optimizer.step()
        self.unfused.step()

    def set_rates(self, factor: float) -> None:
        """Multiply the declared learning rates by ``factor``, from the next step on."""
        rates = (self._options.learning_rate * factor, self._options.sparse_learning_rate * factor)
        if rates == self.rates:
            return
        self.rates = rates
        for group in self.dense_optimizer.param_groups:
            group["lr"] = rates[0]
        self.unfused.learning_rate = rates[1]
        for lookup in self._fused:
            lookup.set_learning_rate(rates[1])

    def set_steps(self, steps: int) -> None:
        """Set the number of steps taken, for Adam's correction of the first ones.

        A fused Adam counts lookups, so it must also be told after an evaluation.
        """
        self.unfused.steps = steps
        for lookup in self._fused:
            if self._options.sparse_optimizer == "adam":
                lookup.set_optimizer_step(steps)
                lookup.iter_cpu.fill_(steps)

    def table_states(self) -> Iterator[tuple[FloatShard, Mapping[str, torch.Tensor]]]:
        """Each of this rank's parts of tables, and its optimiser's live state by name.

        A state is float32 [rows, columns], or [rows] if it is kept by row; SGD keeps none.
        """
        yield from self.unfused.states()
        for shard in float_shards(self._model):
            if _is_fused(shard):
                yield shard, self._fused_state(shard)

    def _fused_state(self, shard: FloatShard) -> dict[str, torch.Tensor]:
        if self._options.sparse_optimizer == "sgd":
            return {}  # fbgemm names a momentum that it does not keep
        state = shard.lookup.get_optimizer_state()[shard.index]
        return {name: tensor.detach() for name, tensor in state.items()}


def _is_fused(shard: FloatShard) -> bool:
    return isinstance(shard.lookup, SplitTableBatchedEmbeddingBagsCodegen)
