"""Checked samples in columns, and their way into TorchRec's KeyedJaggedTensor."""

from dlrm_factory.batch.feature_batch import (
    FeatureBatch,
    concatenate,
    pad_rows,
    pad_samples,
    select_bags,
    split,
)
from dlrm_factory.batch.jagged import to_dense, to_keyed_jagged_tensor
from dlrm_factory.batch.shared_context import (
    SharedContext,
    join_contexts,
    share_pooled,
    tile_context,
    with_contexts,
)
from dlrm_factory.batch.substitutions import Substitutions

__all__ = [
    "FeatureBatch",
    "SharedContext",
    "Substitutions",
    "concatenate",
    "join_contexts",
    "pad_rows",
    "pad_samples",
    "select_bags",
    "share_pooled",
    "split",
    "tile_context",
    "to_dense",
    "to_keyed_jagged_tensor",
    "with_contexts",
]
