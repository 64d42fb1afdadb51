"""The embedding lookup without TorchRec's sparse path: one fbgemm call over the mapped table file.

In one process there is nothing to distribute: the key split, permutes and concatenation of the sharded module cost
more than the lookup itself at small batches. The call reads the file in place whatever the plan, since its offsets
are per feature.
"""

from __future__ import annotations

import numpy as np
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
    PoolingMode,
)

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.dtypes import SPARSE_TYPES
from dlrm_factory.weights import TableFile

__all__ = ["DirectLookup"]


class DirectLookup:
    """Pools the bags of a batch from a mapped table file, on CPU."""

    def __init__(self, declaration: DLRMDeclaration, file: TableFile) -> None:
        """WeightsError if the file does not hold the declared tables."""
        file.check(declaration)
        self._file = file
        self._dim = declaration.embedding_dim
        self._features = len(declaration.sparse_features)
        tables = [declaration.table(feature.table) for feature in declaration.sparse_features]
        dtypes = {table.dtype for table in tables}
        widest = {dtype: self._dim if dtype in dtypes else 0 for dtype in SPARSE_TYPES}
        self._rows_per_table = torch.tensor([table.num_embeddings for table in tables])
        self._mean = np.array([table.pooling == "mean" for table in tables])
        self._ones = torch.empty(0, dtype=torch.int64)
        empty = torch.empty(0, dtype=torch.uint8)
        self._fixed = {
            "dev_weights": file.bytes,
            "uvm_weights": empty,
            "weights_placements": torch.full(
                (self._features,), EmbeddingLocation.HOST.value, dtype=torch.int32
            ),
            "weights_offsets": torch.tensor([file.tables[table.name].offset for table in tables]),
            "weights_tys": torch.tensor(
                [SPARSE_TYPES[table.dtype].as_int() for table in tables], dtype=torch.uint8
            ),
            "D_offsets": torch.arange(self._features + 1, dtype=torch.int32) * self._dim,
            "total_D": self._features * self._dim,
            "max_int2_D": 0,
            "max_int4_D": widest["int4"],
            "max_int8_D": widest["int8"],
            "max_float16_D": widest["fp16"],
            "max_float32_D": widest["fp32"],
            # One call serves sum and mean: means are sums divided afterwards.
            "pooling_mode": int(PoolingMode.SUM),
            "output_dtype": SPARSE_TYPES["fp32"].as_int(),
            "lxu_cache_weights": torch.empty(0, 0, dtype=torch.uint8),
            "lxu_cache_locations": torch.empty(0, dtype=torch.int32),
            "row_alignment": 1,
            "max_float8_D": 0,
            "fp8_exponent_bits": -1,
            "fp8_exponent_bias": -1,
        }
        self._warning = torch.zeros(1, dtype=torch.int64)

    def pool(self, batch: FeatureBatch) -> torch.Tensor:
        """Pooled vectors, float32 [B, F, D], features in declared order. B is at least 1.

        RuntimeError for an id outside its table: such ids are refused before, by name.
        """
        # fbgemm's own check lets -1 pass, and its lookup then gives zeros.
        if batch.values.size and batch.values.min() < 0:
            raise RuntimeError(f"id {batch.values.min()} is negative")
        indices, offsets = torch.from_numpy(batch.values), self._offsets(batch)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights)
        torch.ops.fbgemm.bounds_check_indices(
            self._rows_per_table, indices, offsets, BoundsCheckMode.FATAL.value, self._warning, None
        )
        pooled = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
            indices=indices, offsets=offsets, indice_weights=weights, **self._fixed
        ).view(len(batch), self._features, self._dim)
        return pooled * self._mean_factors(batch) if self._mean.any() else pooled

    def _offsets(self, batch: FeatureBatch) -> torch.Tensor:
        """int64 [F * B + 1]; a batch of one id a bag takes a slice of a cached range."""
        bags = batch.lengths.size
        if batch.values.size == bags and (batch.lengths == 1).all():
            ones = self._ones
            if ones.numel() <= bags:
                self._ones = ones = torch.arange(2 * bags + 1)
            return ones[: bags + 1]
        offsets = np.zeros(bags + 1, dtype=np.int64)
        np.cumsum(batch.lengths.reshape(-1), out=offsets[1:])
        return torch.from_numpy(offsets)

    def _mean_factors(self, batch: FeatureBatch) -> torch.Tensor:
        """float32 [B, F, 1]: 1 / bag length for mean pooling, 1 for sum."""
        lengths = np.where(self._mean[:, None], np.maximum(batch.lengths, 1), 1)
        return torch.from_numpy((1.0 / lengths).astype(np.float32).T[:, :, None])
