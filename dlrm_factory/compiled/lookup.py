"""The embedding lookup without TorchRec's sparse path: one fbgemm call over the mapped table file.

In one process there is nothing to distribute: the key split, permutes and concatenation of the sharded module cost
more than the lookup itself at small batches. The call reads the file in place whatever the plan, since its offsets
are per feature.
"""

from __future__ import annotations

import numpy as np
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.compiled.nbit_lookup import NBitLookup
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.weights.table_file import TableFile

__all__ = ["DirectLookup"]

_MAX_OFFSETS = 1024  # kept at once, of batches of one id a bag; they are slices that share their memory


class DirectLookup:
    """Pools the bags of a batch from a mapped table file, on CPU."""

    def __init__(self, declaration: DLRMDeclaration, file: TableFile) -> None:
        """WeightsError if the file does not hold the declared tables."""
        file.check(declaration)
        self._file = file
        self._dim = declaration.embedding_dim
        self._features = len(declaration.sparse_features)
        tables = [declaration.table(feature.table) for feature in declaration.sparse_features]
        self._rows_per_table = torch.tensor([table.num_embeddings for table in tables])
        self._mean = np.array([table.pooling == "mean" for table in tables])
        self._any_mean = bool(self._mean.any())
        self._longest_offsets = torch.empty(0, dtype=torch.int64)
        self._cached_offsets: dict[int, torch.Tensor] = {}
        self._look_up = NBitLookup(
            file.bytes,
            places=[file.tables[table.name].offset for table in tables],
            dtypes=[table.dtype for table in tables],
            columns=[self._dim] * self._features,
        )
        self._check_bounds = torch.ops.fbgemm.bounds_check_indices.default
        self._warning = torch.zeros(1, dtype=torch.int64)

    def pool(self, batch: FeatureBatch, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Pooled vectors, [B, F, D] in ``dtype`` (float32 or bfloat16), features in declared order. B is at least 1.

        Sums are float32 and rounded once.
        RuntimeError for an id outside its table: such ids are refused before, by name.
        """
        indices, offsets = torch.from_numpy(batch.values), self._offsets(batch)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights)
        if not batch.in_range:
            self._check_rows(batch, indices, offsets)
        # Half the bytes to write and to read again where the dense parts take bfloat16 anyway.
        output = torch.float32 if self._any_mean else dtype
        pooled = self._look_up(indices, offsets, weights, output).view(len(batch), self._features, self._dim)
        return (pooled * self._mean_factors(batch)).to(dtype) if self._any_mean else pooled

    def _check_rows(self, batch: FeatureBatch, indices: torch.Tensor, offsets: torch.Tensor) -> None:
        # fbgemm's own check lets -1 pass, and its lookup then gives zeros.
        if batch.values.size and batch.values.min() < 0:
            raise RuntimeError(f"id {batch.values.min()} is negative")
        self._check_bounds(
            self._rows_per_table, indices, offsets, BoundsCheckMode.FATAL.value, self._warning, None
        )

    def _offsets(self, batch: FeatureBatch) -> torch.Tensor:
        """int64 [F * B + 1]; those of one id a bag are cached."""
        bags = batch.lengths.size
        if batch.one_each or (batch.values.size == bags and (batch.lengths == 1).all()):
            offsets = self._cached_offsets.get(bags)
            return self._counted_offsets(bags) if offsets is None else offsets
        offsets = np.zeros(bags + 1, dtype=np.int64)
        np.cumsum(batch.lengths.reshape(-1), out=offsets[1:])
        return torch.from_numpy(offsets)

    def _counted_offsets(self, bags: int) -> torch.Tensor:
        if self._longest_offsets.numel() <= bags:
            self._longest_offsets = torch.arange(2 * bags + 1)
        offsets = self._longest_offsets[: bags + 1]
        if len(self._cached_offsets) < _MAX_OFFSETS:
            self._cached_offsets[bags] = offsets
        return offsets

    def _mean_factors(self, batch: FeatureBatch) -> torch.Tensor:
        """float32 [B, F, 1]: 1 / bag length for mean pooling, 1 for sum."""
        lengths = np.where(self._mean[:, None], np.maximum(batch.lengths, 1), 1)
        return torch.from_numpy((1.0 / lengths).astype(np.float32).T[:, :, None])
