"""TorchRec's sharded EmbeddingCollection with lookups of our own, as training and serving need them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingCollection

__all__ = ["SequenceSharder", "ShardedSequences"]


class ShardedSequences(ShardedEmbeddingCollection):
    """ShardedEmbeddingCollection whose lookups are of the class ``lookup``."""

    lookup: ClassVar[type[GroupedEmbeddingsLookup]]

    def _create_lookups(self) -> None:
        for sharding in self._sharding_type_to_sharding.values():
            self._lookups.append(
                self.lookup(
                    grouped_configs=sharding._grouped_embedding_configs,
                    pg=self._env.process_group,
                    device=self._device,
                    env=self._env,
                )
            )


class SequenceSharder(EmbeddingCollectionSharder):
    """Makes modules of the class ``sharded``."""

    sharded: ClassVar[type[ShardedSequences]]

    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedSequences:
        return self.sharded(
            module,
            params,
            env,
            self.fused_params,
            device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )

    @property
    def sharded_module_type(self) -> type[ShardedSequences]:
        return self.sharded
