"""Float sequence tables in training, where TorchRec's own lookup is wrong on CPU.

fbgemm's dense lookup on CPU (torchrec 1.8), which data-parallel tables and Adam use, sums the bags of a sequence
although it was made with pooling NONE. Here each id is a bag of its own. The other lookups are TorchRec's.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbedding
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, GroupedEmbeddingConfig
from torchrec.distributed.types import ShardingEnv
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_factory.model.sequence_sharding import SequenceSharder, ShardedSequences

__all__ = ["FloatEmbeddingCollectionSharder"]


class _DenseSequences(BatchedDenseEmbedding):
    """TorchRec's dense lookup of sequences on CPU, a bag an id."""

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """features: F_local keys, values int64 → float32 [ids, local_cols], feature after feature."""
        values, ends = features.values(), features.offset_per_key()
        counts = features.length_per_key()
        bags = max(1, *counts)
        places = torch.arange(bags)
        starts = [start + places.clamp(max=count) for start, count in zip(ends, counts, strict=False)]
        offsets = torch.cat([*starts, torch.tensor([values.numel()])])
        # Bags beyond a feature's last id are empty.
        found = self.emb_module(indices=values.long(), offsets=offsets).view(bags, len(counts), -1)
        return torch.cat([found[:count, i] for i, count in enumerate(counts)])


class _Lookup(GroupedEmbeddingsLookup):
    def _create_embedding_kernel(
        self,
        config: GroupedEmbeddingConfig,
        pg: dist.ProcessGroup | None,
        device: torch.device | None,
        env: ShardingEnv | None = None,
    ) -> nn.Module:
        on_cpu = device is None or device.type == "cpu"
        if on_cpu and config.compute_kernel is EmbeddingComputeKernel.DENSE:
            return _DenseSequences(config=config, pg=pg, device=device)
        return super()._create_embedding_kernel(config, pg, device, env)


class FloatShardedEmbeddingCollection(ShardedSequences):
    """ShardedEmbeddingCollection that trains rightly on CPU too."""

    lookup = _Lookup


class FloatEmbeddingCollectionSharder(SequenceSharder):
    """TorchRec's sharder of sequence tables, for training."""

    sharded = FloatShardedEmbeddingCollection
