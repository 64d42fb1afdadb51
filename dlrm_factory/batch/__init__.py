"""Checked samples in columns, and their way into TorchRec's KeyedJaggedTensor."""

from dlrm_factory.batch.embeddings import (
    Embeddings,
    concatenate_embeddings,
    share_embeddings,
    split_embeddings,
)
from dlrm_factory.batch.feature_batch import (
    FeatureBatch,
    concatenate,
    cut,
    pad_rows,
    pad_samples,
    select_bags,
    select_features,
    split,
)
from dlrm_factory.batch.jagged import pooled_part, sequence_part, to_dense, to_keyed_jagged_tensors
from dlrm_factory.batch.shared_context import (
    Part,
    SharedContext,
    join_contexts,
    part_rankings,
    shared_rows,
    tile_context,
    with_contexts,
    without_empty_contexts,
)
from dlrm_factory.batch.substitutions import Substitutions

__all__ = [
    "Embeddings",
    "FeatureBatch",
    "Part",
    "SharedContext",
    "Substitutions",
    "concatenate",
    "concatenate_embeddings",
    "cut",
    "join_contexts",
    "pad_rows",
    "pad_samples",
    "part_rankings",
    "pooled_part",
    "select_bags",
    "select_features",
    "sequence_part",
    "share_embeddings",
    "shared_rows",
    "split",
    "split_embeddings",
    "tile_context",
    "to_dense",
    "to_keyed_jagged_tensors",
    "with_contexts",
    "without_empty_contexts",
]
