"""Serving tables (fp32, fp16, int8, int4) inside TorchRec's sharded EmbeddingBagCollection and EmbeddingCollection.

TorchRec's own quantised sharding runs in one process only, cannot mix fp16 or fp32 tables with int8 ones under
row_wise or column_wise sharding, and computes row_wise mean pooling wrongly from two ranks on. Its float
sharding does none of that, so we keep the float path whole (input dist, output dist, mean pooling callback) and
exchange just the lookup: fbgemm's inference kernel over encoded rows in place of the training kernel. One code
path then serves one process and N processes, every sharding type, every dtype, sum and mean, and sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torchrec.distributed.batched_embedding_kernel import pooling_type_to_pooling_mode
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup, GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_types import (
    EmbeddingComputeKernel,
    GroupedEmbeddingConfig,
    ShardedEmbeddingTable,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType
from torchrec.modules.embedding_configs import data_type_to_sparse_type
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.dtypes import DATA_TYPES
from dlrm_factory.model.model import RankingModel, tables_of
from dlrm_factory.model.row_wise_means import divide_row_wise_means_alone
from dlrm_factory.model.sequence_sharding import SequenceSharder, ShardedSequences

__all__ = [
    "QuantizedEmbeddingBag",
    "QuantizedEmbeddingBagCollectionSharder",
    "QuantizedEmbeddingCollectionSharder",
    "kernels_of",
    "quantize_tables",
]

SUPPORTED_SHARDING_TYPES = ["table_wise", "row_wise", "column_wise", "data_parallel"]


def quantize_tables(model: RankingModel, declaration: DLRMDeclaration) -> RankingModel:
    """Mark each table of an unsharded model with its declared dtype, in place. The tables stay on meta."""
    for collection in tables_of(model):
        pooled = isinstance(collection, EmbeddingBagCollection)
        for config in collection.embedding_bag_configs() if pooled else collection.embedding_configs():
            config.data_type = DATA_TYPES[declaration.table(config.name).dtype]
    return model


class QuantizedEmbeddingBag(nn.Module):
    """One fbgemm inference lookup over this rank's shards of some tables.

    ``tables`` are the shards in the lookup's order; ``tbe`` holds their rows once `weights` has loaded them.
    """

    def __init__(
        self,
        config: GroupedEmbeddingConfig,
        *,
        sharding_type: ShardingType | None,
        device: torch.device,
        pools: bool = True,
    ) -> None:
        """``pools``: False for sequences, which come as a row an id."""
        super().__init__()
        self.config = config
        on_host = device.type == "cpu"
        location = EmbeddingLocation.HOST if on_host else EmbeddingLocation.DEVICE
        self.tbe = IntNBitTableBatchedEmbeddingBagsCodegen(
            embedding_specs=[
                (
                    table.name,
                    table.local_rows,
                    table.local_cols,
                    data_type_to_sparse_type(table.data_type),
                    location,
                )
                for table in config.embedding_tables
            ],
            feature_table_map=[
                i for i, table in enumerate(config.embedding_tables) for _ in range(table.num_features())
            ],
            # row_wise sums the ranks' partial bags, and TorchRec's mean callback divides once at the end.
            pooling_mode=pooling_type_to_pooling_mode(config.pooling, sharding_type)
            if pools
            else PoolingMode.NONE,
            device=device,
            # The encoder has checked every id by name; FATAL is a second line that stops instead of reading row 0.
            bounds_check_mode=BoundsCheckMode.FATAL,
            output_dtype=SparseType.FP32,
            row_alignment=1 if on_host else 16,
        )
        # FATAL is 0, and the constructor takes a falsy mode for its default.
        self.tbe.bounds_check_mode_int = BoundsCheckMode.FATAL.value
        # A lookup that raised would leave the other ranks waiting for its vectors.
        self.on_error: Callable[[Exception], None] | None = None

    @property
    def tables(self) -> list[ShardedEmbeddingTable]:
        """The shards in the lookup's order, with their global offsets."""
        return self.config.embedding_tables

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """features: F_local keys, values int64 → pooled float32 [B, F_local * local_cols]; of sequences a row an id.

        With ``on_error`` an error goes there, and zeros come out.
        """
        if self.on_error is None:
            return self._look_up(features)
        try:
            return self._look_up(features)
        except Exception as error:
            self.on_error(error)
            columns = sum(table.local_cols * table.num_features() for table in self.tables)
            return torch.zeros(features.stride(), columns, device=features.values().device)

    def _index_dtype(self, values: torch.Tensor) -> torch.dtype:
        # The CUDA kernel takes int32 indices; rows are below 2**31 by the declaration's rules.
        return values.dtype if values.device.type == "cpu" else torch.int32

    def _look_up(self, features: KeyedJaggedTensor) -> torch.Tensor:
        values = features.values()
        dtype = self._index_dtype(values)
        return self.tbe(
            indices=values.to(dtype),
            offsets=features.offsets().to(dtype),
            per_sample_weights=features.weights_or_none(),
        )


class _QuantizedLookup(GroupedPooledEmbeddingsLookup):
    """TorchRec's grouped lookup with our kernel in each group."""

    def _create_embedding_kernel(
        self,
        config: GroupedEmbeddingConfig,
        device: torch.device | None,
        pg: Any,
        sharding_type: ShardingType | None,
        env: ShardingEnv | None,
    ) -> nn.Module:
        assert device is not None
        return QuantizedEmbeddingBag(config, sharding_type=sharding_type, device=device)


class QuantizedShardedEmbeddingBagCollection(ShardedEmbeddingBagCollection):
    """ShardedEmbeddingBagCollection whose lookups are `QuantizedEmbeddingBag`s, for inference only.

    The module has no state dict: rows are loaded by `dlrm_factory.weights`, after sharding, straight into the lookups.
    """

    def _create_lookups(self) -> None:
        for sharding in self._embedding_shardings:
            kind = sharding.__class__.__name__
            self._lookups.append(
                _QuantizedLookup(
                    grouped_configs=sharding._grouped_embedding_configs,
                    device=self._device,
                    pg=self._env.process_group,
                    sharding_type=ShardingType.ROW_WISE if kind == "RwPooledEmbeddingSharding" else None,
                    env=self._env,
                )
            )

    def init_data_parallel(self) -> None:
        """Inference has no gradients to average, so no DistributedDataParallel."""

    def _initialize_torch_state(self, skip_registering: bool = False) -> None:
        self.embedding_bags = nn.ModuleDict({name: nn.Module() for name in self._table_names})

    @property
    def kernels(self) -> list[QuantizedEmbeddingBag]:
        """Lookups of this rank."""
        return [kernel for lookup in self._lookups for kernel in lookup._emb_modules]


class _QuantizedSequenceLookup(GroupedEmbeddingsLookup):
    """TorchRec's grouped lookup of sequences with our kernel in each group."""

    def _create_embedding_kernel(
        self,
        config: GroupedEmbeddingConfig,
        pg: Any,
        device: torch.device | None,
        env: ShardingEnv | None = None,
    ) -> nn.Module:
        assert device is not None
        return QuantizedEmbeddingBag(config, sharding_type=None, device=device, pools=False)


class QuantizedShardedEmbeddingCollection(ShardedSequences):
    """ShardedEmbeddingCollection whose lookups are `QuantizedEmbeddingBag`s, for inference only."""

    lookup = _QuantizedSequenceLookup

    def init_data_parallel(self) -> None:
        """Inference has no gradients to average, so no DistributedDataParallel."""

    def _initialize_torch_state(self, skip_registering: bool = False) -> None:
        self.embeddings = nn.ModuleDict({name: nn.Module() for name in self._table_names})

    @property
    def kernels(self) -> list[QuantizedEmbeddingBag]:
        """Lookups of this rank."""
        return [kernel for lookup in self._lookups for kernel in lookup._emb_modules]


def kernels_of(model: nn.Module) -> list[QuantizedEmbeddingBag]:
    """Lookups of the sharded ``model`` on this rank."""
    kinds = (QuantizedShardedEmbeddingBagCollection, QuantizedShardedEmbeddingCollection)
    return [kernel for module in model.modules() if isinstance(module, kinds) for kernel in module.kernels]


class QuantizedEmbeddingBagCollectionSharder(EmbeddingBagCollectionSharder):
    """Shards an EmbeddingBagCollection whose tables `quantize_tables` has marked."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return SUPPORTED_SHARDING_TYPES

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.QUANT.value]

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> QuantizedShardedEmbeddingBagCollection:
        sharded = QuantizedShardedEmbeddingBagCollection(
            module=module,
            table_name_to_parameter_sharding=params,
            env=env,
            fused_params=self.fused_params,
            device=device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )
        divide_row_wise_means_alone(sharded)
        return sharded

    @property
    def sharded_module_type(self) -> type[QuantizedShardedEmbeddingBagCollection]:
        return QuantizedShardedEmbeddingBagCollection


class QuantizedEmbeddingCollectionSharder(SequenceSharder):
    """Shards an EmbeddingCollection whose tables `quantize_tables` has marked."""

    sharded = QuantizedShardedEmbeddingCollection

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return SUPPORTED_SHARDING_TYPES

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.QUANT.value]
