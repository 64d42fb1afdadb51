"""Means of row_wise tables beside tables of other shardings, which TorchRec 1.8 spoils.

It sums the bags of row_wise tables and divides afterwards where the pooling is a mean. But it divides the vectors of
all features, those of table_wise, column_wise and data_parallel tables too, by the lengths of their bags.
"""

from __future__ import annotations

from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import PoolingType

__all__ = ["divide_row_wise_means_alone"]


def divide_row_wise_means_alone(sharded: ShardedEmbeddingBagCollection) -> None:
    """Let ``sharded`` divide no feature but those of row_wise tables that pool by the mean."""
    by_pooling = sharded._pooling_type_to_rs_features  # features of row_wise tables, by pooling
    divided = by_pooling.get(PoolingType.MEAN.value, [])
    features = [name for sharding in sharded._embedding_shardings for name in sharding.feature_names()]
    by_pooling[PoolingType.SUM.value] = [name for name in features if name not in divided]
