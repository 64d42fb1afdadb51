"""`DLRMFactory`: declaration → sharded model with its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import msgspec
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed import DistributedModelParallel

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import PlanError, WeightsError
from dlrm_factory.model.hardware import Hardware, hardware_of
from dlrm_factory.model.model import (
    RankingModel,
    TablesOnly,
    is_table_key,
    load_dense,
    make_model,
    table_weight_key,
    tables_of,
)
from dlrm_factory.model.plan import Mode, TablePlan, make_plan
from dlrm_factory.model.quantize import quantize_tables
from dlrm_factory.model.shard import make_sharders, process_group, shard_model
from dlrm_factory.weights.checkpoint import Checkpoint
from dlrm_factory.weights.loading import (
    FloatShard,
    fill_float_tables,
    fill_quantized_tables,
    float_shards,
    map_quantized_tables,
)
from dlrm_factory.weights.rows import RandomRows, RowSource, StateDictRows
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["BuiltDLRM", "DLRMFactory"]

OpenWeights: TypeAlias = Checkpoint | SealedWeights | Mapping[str, torch.Tensor]
TableOptimizer = Callable[[Iterable[nn.Parameter]], None]


@dataclass(frozen=True, kw_only=True)
class BuiltDLRM:
    """A sharded model, ready to run.

    ``model(dense_features float32 [B, n], KeyedJaggedTensor)`` → float32 [B, C], a column an output: of TorchRec's
    architectures logits [B, 1]. Sequence features come in a second KeyedJaggedTensor. With several ranks every rank
    must call it, each with its own batch. Run it under `torch.no_grad()`, not `torch.inference_mode()`.
    """

    declaration: DLRMDeclaration
    plan: TablePlan
    model: DistributedModelParallel
    device: torch.device

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A float model's weights, whole, on CPU, under the unsharded model's keys. Collective over the ranks."""
        if self.plan.mode != "float":
            raise WeightsError(
                "a quantized model has no float state dict; take it from the checkpoint it came from"
            )
        found = self.model.state_dict().items()
        state = {key: t.detach().cpu() for key, t in found if not is_table_key(key)}
        return state | self._gather_tables()

    def _gather_tables(self) -> dict[str, torch.Tensor]:
        shards: dict[str, list[FloatShard]] = {}
        for shard in float_shards(self.model):
            shards.setdefault(shard.table, []).append(shard)
        whole = {}
        for table in self.declaration.tables:
            weight = torch.zeros(table.num_embeddings, table.embedding_dim, device=self.device)
            for shard in shards.get(table.name, []):
                if shard.data_parallel and dist.get_rank() != 0:
                    continue  # every rank has the same copy; the sum below wants one
                rows, columns = shard.weight.shape
                weight[shard.row_offset :, shard.column_offset :][:rows, :columns] = shard.weight
            if dist.get_world_size() > 1:
                dist.all_reduce(weight)
            whole[table_weight_key(table.name, table.pooling)] = weight.cpu()
        return whole


class DLRMFactory:
    """Builds the declared DLRM for the hardware at hand: model → (quantize) → plan → shard → load."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        self.declaration = declaration

    def plan(self, *, mode: Mode = "quantized", hardware: Hardware | None = None) -> TablePlan:
        """Plan the tables on ``hardware``, the declared one if None, which need not be here."""
        hardware = hardware or hardware_of(self.declaration.sharding)
        return self._plan(TablesOnly(self.declaration), mode, hardware)

    def build(
        self,
        *,
        mode: Mode = "quantized",
        weights: OpenWeights | Path | None = None,
        device: str | None = None,
        memory: int | None = None,
        table_optimizer: TableOptimizer | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> BuiltDLRM:
        """Build the model on this process's rank, alone or under torchrun.

        Args:
            mode: ``quantized`` to serve, each table in its declared dtype; ``float`` to train, all fp32.
            weights: a checkpoint, sealed weights (or their folder), a plain state dict, or None for random ones
                from the declared seed.
            device: ``cpu`` or ``cuda``; the declared one if None.
            memory: bytes a rank has for tables; the declared or this machine's if None.
            table_optimizer: called with the tables' parameters before they are sharded, e.g. to fuse an
                optimiser into their backward with `apply_optimizer_in_backward`. Float mode only.
            group: the processes to shard over; all of the world if None. Quantized mode only.

        Raises:
            PlanError: the tables do not fit, or cannot be sharded as declared.
            WeightsError: the weights are not this model's.
        """
        place = _local_device(device or self.declaration.sharding.device)
        ranks = group or process_group(place.type)
        source = SealedWeights(weights) if isinstance(weights, Path) else weights
        # Any number of ranks serves sealed weights; whoever trains is told of a torchrun that is not as declared.
        fixed = not isinstance(source, SealedWeights)
        hardware = self._hardware_here(place.type, ranks.size(), memory, fixed=fixed)

        model = self._make_model(source, place)
        if table_optimizer is not None:
            table_optimizer(chain.from_iterable(each.parameters() for each in tables_of(model)))
        if mode == "quantized":
            quantize_tables(model, self.declaration)
        plan = self._plan(model, mode, hardware)
        if isinstance(source, SealedWeights):
            # A host of several reads its own ranks' part of the file alone.
            source.tables.held = plan.host_bytes()[ranks.rank() // plan.hardware.local_world_size]
        sharded = shard_model(model, plan, device=place, group=ranks)
        self._load_tables(sharded, mode, source)
        if mode == "quantized":
            sharded.eval()
        return BuiltDLRM(declaration=self.declaration, plan=plan, model=sharded, device=place)

    def _make_model(self, weights: OpenWeights | None, device: torch.device) -> RankingModel:
        """The unsharded model, tables on meta, dense weights loaded or seeded."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.declaration.training.seed)
            model = make_model(self.declaration)
        if weights is not None:
            load_dense(model, weights if isinstance(weights, Mapping) else weights.dense_state())
        model.net.to(device)
        return model

    def _plan(self, model: nn.Module, mode: Mode, hardware: Hardware) -> TablePlan:
        return make_plan(model, self.declaration, hardware, mode=mode, sharders=make_sharders(mode))

    def _load_tables(self, model: DistributedModelParallel, mode: Mode, weights: OpenWeights | None) -> None:
        if isinstance(weights, SealedWeights):
            if mode == "float":
                raise WeightsError(
                    "sealed weights are encoded for serving; build a float model from a checkpoint"
                )
            map_quantized_tables(model, self.declaration, weights.tables)
            return
        source = self._row_source(weights)
        if mode == "float":
            fill_float_tables(model, source)
        else:
            fill_quantized_tables(model, self.declaration, source)

    def _row_source(self, weights: OpenWeights | None) -> RowSource:
        if isinstance(weights, Checkpoint):
            return weights
        if isinstance(weights, Mapping):
            return StateDictRows(self.declaration, weights)
        return RandomRows(self.declaration, self.declaration.training.seed)

    def _hardware_here(self, device: str, world_size: int, memory: int | None, *, fixed: bool) -> Hardware:
        """The declared hardware with the ranks that really run."""
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        declared = self.declaration.sharding
        if fixed and declared.world_size not in (1, world_size):
            raise PlanError(
                f"$.sharding.world_size is {declared.world_size} but {world_size} "
                f"{'process runs' if world_size == 1 else 'processes run'}; start that many with torchrun, "
                "or leave world_size at 1"
            )
        here = hardware_of(
            msgspec.structs.replace(
                declared, device=device, world_size=world_size, hosts=max(1, world_size // local)
            )
        )
        return (
            here
            if memory is None
            else Hardware(device=here.device, world_size=here.world_size, hosts=here.hosts, memory=memory)
        )


def _local_device(kind: str) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PlanError("device cuda was asked for, but torch sees no CUDA device here; use device cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
