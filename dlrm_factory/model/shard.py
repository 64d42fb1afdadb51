"""Model on meta + plan → DistributedModelParallel."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.global_settings import set_propogate_device
from torchrec.distributed.types import ModuleSharder, ShardingEnv

from dlrm_factory.host.process import RANK_STORE_VARIABLE
from dlrm_factory.model.float_sequences import FloatEmbeddingCollectionSharder
from dlrm_factory.model.plan import Mode, TablePlan
from dlrm_factory.model.quantize import (
    SUPPORTED_SHARDING_TYPES,
    QuantizedEmbeddingBagCollectionSharder,
    QuantizedEmbeddingCollectionSharder,
)
from dlrm_factory.model.row_wise_means import divide_row_wise_means_alone

__all__ = ["FloatEmbeddingBagCollectionSharder", "make_sharders", "process_group", "shard_model"]

_TIMEOUT = timedelta(minutes=5)


class FloatEmbeddingBagCollectionSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, which on CPU does not name row_wise, and divides too much beside row_wise means."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return SUPPORTED_SHARDING_TYPES

    def shard(self, *args: Any, **kwargs: Any) -> ShardedEmbeddingBagCollection:
        sharded: ShardedEmbeddingBagCollection = super().shard(*args, **kwargs)
        divide_row_wise_means_alone(sharded)
        return sharded


def make_sharders(mode: Mode) -> list[ModuleSharder[Any]]:
    """The sharders, of pooled and of sequence tables, of a trainable (float) or a serving (quantized) model."""
    if mode == "float":
        return [FloatEmbeddingBagCollectionSharder(), FloatEmbeddingCollectionSharder()]
    return [QuantizedEmbeddingBagCollectionSharder(), QuantizedEmbeddingCollectionSharder()]


def process_group(device: str, store: dist.Store | None = None) -> dist.ProcessGroup:
    """The world's process group: ranks as the environment numbers them, or this process alone. Made if there is none.

    gloo for ``cpu``, NCCL for ``cuda``. ``store``: where the ranks find each other; None for the file that
    `RANK_STORE_VARIABLE` names, else for torchrun's way, which listens on all interfaces. A lone process needs none.
    """
    if not dist.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if size == 1:
            store = dist.HashStore()
        elif store is None and RANK_STORE_VARIABLE in os.environ:
            store = dist.FileStore(os.environ[RANK_STORE_VARIABLE], size)
        if store is None:
            dist.init_process_group(backend, timeout=_TIMEOUT)
        else:
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    group = dist.group.WORLD
    assert group is not None
    return group


def shard_model(
    model: nn.Module, plan: TablePlan, *, device: torch.device, group: dist.ProcessGroup | None = None
) -> DistributedModelParallel:
    """Shard ``model`` by ``plan`` over ``group``, the world's if None. Tables come out uninitialised: load them after.

    A float model's dense parts are wrapped in DistributedDataParallel when there are several ranks to train.
    """
    group = group or process_group(device.type)
    # Without it TorchRec's lookups on CPU ask for the current CUDA device.
    set_propogate_device(True)
    return DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(group),
        device=device,
        plan=plan.sharding_plan,
        sharders=make_sharders(plan.mode),
        init_data_parallel=plan.mode == "float" and group.size() > 1,
        init_parameters=False,
    )
