"""The optimisers of a model in training: of its dense parts, and of its tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.optim import RowWiseAdagrad

from dlrm_factory.config.declaration import DLRMDeclaration, TrainingOptions
from dlrm_factory.factory import BuiltDLRM, TableOptimizer
from dlrm_factory.model.model import EMBEDDINGS_PREFIX
from dlrm_factory.model.plan import has_fused_optimizer
from dlrm_factory.tools.training.unfused import UnfusedTables
from dlrm_factory.weights.loading import FloatShard, float_shards

__all__ = ["Optimizers", "fused_table_optimizer"]

_DENSE = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
_FUSED = {
    "row_wise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
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
    """Both optimisers behind `zero_grad` and `step`, as TorchRec's train pipeline wants them.

    Fused tables have moved when the backward pass is over; `step` moves the rest.

    Fields:
        dense: the dense parameters by name.
        rates: the dense and the tables' learning rate.
    """

    def __init__(self, built: BuiltDLRM, options: TrainingOptions) -> None:
        self._options = options
        self._model = built.model
        named = built.model.named_parameters()
        self.dense: dict[str, nn.Parameter] = {k: p for k, p in named if EMBEDDINGS_PREFIX not in k}
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
        """The declared learning rates times ``factor``, from the next step on."""
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
        """How many steps were taken, for Adam's correction of the first ones.

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
