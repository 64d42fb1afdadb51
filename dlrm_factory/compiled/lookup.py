"""The embedding lookup without TorchRec's sparse path: one fbgemm call over the mapped table file.

In one process there is nothing to distribute: the key split, permutes and concatenation of the sharded module cost
more than the lookup itself at small batches. The call reads the file in place whatever the plan, since its offsets
are per feature. A sequence is looked up as T bags a sample of one id each, empty past its end: padded as it comes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode

from dlrm_factory.batch import Embeddings, FeatureBatch, pooled_part, sequence_part
from dlrm_factory.compiled.nbit_lookup import NBitLookup
from dlrm_factory.config.declaration import DLRMDeclaration, SparseFeature
from dlrm_factory.weights.table_file import TableFile

__all__ = ["DirectLookup", "PooledLookup"]

_MAX_OFFSETS = 1024  # kept at once, of batches of one id a bag; they are slices that share their memory

Int64 = npt.NDArray[np.int64]


class DirectLookup:
    """Looks the bags of a batch up in a mapped table file, on CPU."""

    def __init__(self, declaration: DLRMDeclaration, file: TableFile) -> None:
        """WeightsError if the file does not hold the declared tables."""
        file.check(declaration)
        self._declaration = declaration
        self._file = file
        self._sequences = declaration.sequence_features
        self._rows_per_table = _rows(declaration, declaration.sparse_features)
        self._offsets = _Offsets()
        self._pool = self.pooling(declaration.pooled_features)
        self._look_up_sequence = [_nbit_lookup(declaration, file, [feature]) for feature in self._sequences]
        self._check_bounds = torch.ops.fbgemm.bounds_check_indices.default
        self._warning = torch.zeros(1, dtype=torch.int64)

    def pooling(self, features: list[SparseFeature]) -> PooledLookup:
        """The lookup of some pooled features alone."""
        return PooledLookup(self._declaration, self._file, features, self._offsets)

    def look_up(self, batch: FeatureBatch, dtype: torch.dtype = torch.float32) -> Embeddings:
        """Vectors of all features, the pooled ones in ``dtype`` (float32 or bfloat16). B is at least 1.

        Sums are float32 and rounded once. Sequences are float32.
        RuntimeError for an id outside its table: such ids are refused before, by name.
        """
        self.check(batch)
        if not self._sequences:
            return Embeddings(self._pool(batch, dtype))
        pooled = self._pool(pooled_part(batch, self._declaration), dtype)
        sequences, lengths = self._look_up_sequences(sequence_part(batch, self._declaration))
        return Embeddings(pooled, sequences, lengths)

    def check(self, batch: FeatureBatch) -> None:
        """RuntimeError for an id outside its table, unless ``batch`` is known to have none."""
        if not batch.in_range:
            self._check_rows(batch)

    def _look_up_sequences(self, batch: FeatureBatch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        longest: dict[int, int] = {}
        for feature, lengths in zip(self._sequences, batch.lengths, strict=True):
            size = feature.max_length
            longest[size] = max(longest.get(size, 1), int(lengths.max()))
        found, counts, start = [], [], 0
        for i, feature in enumerate(self._sequences):
            lengths = batch.lengths[i]
            stop = start + int(lengths.sum())
            steps = longest[feature.max_length]
            is_filled = np.arange(steps) < lengths[:, None]
            offsets = np.zeros(is_filled.size + 1, dtype=np.int64)
            np.cumsum(is_filled.reshape(-1), out=offsets[1:])
            vectors = self._look_up_sequence[i](
                torch.from_numpy(batch.values[start:stop]), torch.from_numpy(offsets)
            )
            found.append(vectors.view(len(batch), steps, -1))
            counts.append(torch.from_numpy(lengths.astype(np.int64)))
            start = stop
        return found, counts

    def _check_rows(self, batch: FeatureBatch) -> None:
        # fbgemm's own check lets -1 pass, and its lookup then gives zeros.
        if batch.values.size and batch.values.min() < 0:
            raise RuntimeError(f"id {batch.values.min()} is negative")
        indices, offsets = torch.from_numpy(batch.values), self._offsets.of(batch)
        self._check_bounds(
            self._rows_per_table, indices, offsets, BoundsCheckMode.FATAL.value, self._warning, None
        )


class PooledLookup:
    """Looks some pooled features' bags up in a mapped table file, on CPU, and pools them."""

    def __init__(
        self, declaration: DLRMDeclaration, file: TableFile, features: list[SparseFeature], offsets: _Offsets
    ) -> None:
        tables = [declaration.table(feature.table) for feature in features]
        dims = [table.embedding_dim for table in tables]
        self._columns = sum(dims)
        self._mean = np.array([table.pooling == "mean" for table in tables], dtype=bool)
        self._any_mean = bool(self._mean.any())
        self._feature_of_column = np.repeat(np.arange(len(dims)), dims)
        self._offsets = offsets
        self._look_up = _nbit_lookup(declaration, file, features)

    def __call__(self, batch: FeatureBatch, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[B, W] in ``dtype`` of ``batch``, which holds bags of these features alone, their ids in range."""
        if not self._columns:
            return torch.empty(len(batch), 0, dtype=dtype)
        indices, offsets = torch.from_numpy(batch.values), self._offsets.of(batch)
        weights = None if batch.weights is None else torch.from_numpy(batch.weights)
        # Half the bytes to write and to read again where the dense parts take bfloat16 anyway.
        output = torch.float32 if self._any_mean else dtype
        pooled = self._look_up(indices, offsets, weights, output)
        return (pooled * self._mean_factors(batch)).to(dtype) if self._any_mean else pooled

    def _mean_factors(self, batch: FeatureBatch) -> torch.Tensor:
        """float32 [B, W]: 1 / bag length for mean pooling, 1 for sum."""
        lengths = np.where(self._mean[:, None], np.maximum(batch.lengths, 1), 1)
        factors = (1.0 / lengths).astype(np.float32).T
        return torch.from_numpy(factors[:, self._feature_of_column])


class _Offsets:
    """Bags' first places among a batch's ids, int64 [F * B + 1]; those of one id a bag are cached."""

    def __init__(self) -> None:
        self._longest = torch.empty(0, dtype=torch.int64)
        self._cached: dict[int, torch.Tensor] = {}

    def of(self, batch: FeatureBatch) -> torch.Tensor:
        bags = batch.lengths.size
        if batch.one_each or (batch.values.size == bags and (batch.lengths == 1).all()):
            offsets = self._cached.get(bags)
            return self._counted(bags) if offsets is None else offsets
        offsets = np.zeros(bags + 1, dtype=np.int64)
        np.cumsum(batch.lengths.reshape(-1), out=offsets[1:])
        return torch.from_numpy(offsets)

    def _counted(self, bags: int) -> torch.Tensor:
        if self._longest.numel() <= bags:
            self._longest = torch.arange(2 * bags + 1)
        offsets = self._longest[: bags + 1]
        if len(self._cached) < _MAX_OFFSETS:
            self._cached[bags] = offsets
        return offsets


def _nbit_lookup(declaration: DLRMDeclaration, file: TableFile, features: list[SparseFeature]) -> NBitLookup:
    tables = [declaration.table(feature.table) for feature in features]
    return NBitLookup(
        file.bytes,
        places=[file.tables[table.name].offset for table in tables],
        dtypes=[table.dtype for table in tables],
        columns=[table.embedding_dim for table in tables],
    )


def _rows(declaration: DLRMDeclaration, features: list[SparseFeature]) -> torch.Tensor:
    return torch.tensor([declaration.table(feature.table).num_embeddings for feature in features])
