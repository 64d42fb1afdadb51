"""`FeatureBatch` → TorchRec's KeyedJaggedTensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_factory.batch.feature_batch import FeatureBatch, select_features
from dlrm_factory.config import DLRMDeclaration, SparseFeature

__all__ = ["pooled_part", "pooling_weights", "sequence_part", "to_dense", "to_keyed_jagged_tensors"]


def pooled_part(batch: FeatureBatch, declaration: DLRMDeclaration) -> FeatureBatch:
    """The samples with the bags of pooled features alone."""
    return _part(batch, declaration, [feature.name for feature in declaration.pooled_features])


def sequence_part(batch: FeatureBatch, declaration: DLRMDeclaration) -> FeatureBatch:
    """The samples with the bags of sequence features alone."""
    return _part(batch, declaration, [feature.name for feature in declaration.sequence_features])


def _part(batch: FeatureBatch, declaration: DLRMDeclaration, names: list[str]) -> FeatureBatch:
    if len(names) == len(declaration.sparse_features):
        return batch
    return select_features(batch, [declaration.sparse_names.index(name) for name in names])


def to_keyed_jagged_tensors(
    batch: FeatureBatch, declaration: DLRMDeclaration, *, device: torch.device | None = None
) -> tuple[KeyedJaggedTensor, KeyedJaggedTensor | None]:
    """KeyedJaggedTensors of the pooled and of the sequence features, the second None if there are none.

    Their keys are the features in declared order, their stride is B: values int64, lengths int32, feature-major.
    A DistributedModelParallel model keeps the key order of the first KeyedJaggedTensor it sees, so this order never
    changes for a model. The pooled one of a weighted model has weights float32, see `pooling_weights`.
    """
    pooled = pooled_part(batch, declaration)
    names = [feature.name for feature in declaration.pooled_features]
    found = _keyed(pooled, names, pooling_weights(pooled, declaration), device)
    if not declaration.sequence_features:
        return found, None
    names = [feature.name for feature in declaration.sequence_features]
    return found, _keyed(sequence_part(batch, declaration), names, None, device)


def _keyed(
    batch: FeatureBatch,
    names: list[str],
    weights: npt.NDArray[np.float32] | None,
    device: torch.device | None,
) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=names,
        values=torch.from_numpy(batch.values).to(device),
        lengths=torch.from_numpy(np.ascontiguousarray(batch.lengths.reshape(-1))).to(device),
        weights=None if weights is None else torch.from_numpy(weights).to(device),
        stride=len(batch),
    )


def pooling_weights(
    batch: FeatureBatch, declaration: DLRMDeclaration, features: Sequence[SparseFeature] | None = None
) -> npt.NDArray[np.float32] | None:
    """Factor of each row in its bag's sum, float32 [values]; None if the model takes no weights.

    TorchRec's weights are a whole model's or none, and no kernel of its takes them with mean pooling. So a
    weighted model sums everywhere, and here a mean becomes a sum with weights of 1 / length. ``features``: that
    ``batch`` has bags of; the pooled ones if None.
    """
    if not declaration.is_weighted:
        assert batch.weights is None
        return None
    weights = np.ones(len(batch.values), dtype=np.float32) if batch.weights is None else batch.weights
    pooling = {table.name: table.pooling for table in declaration.tables}
    features = declaration.pooled_features if features is None else features
    means = [pooling[feature.table] == "mean" for feature in features]
    if any(means):
        lengths = np.where(np.array(means)[:, None], batch.lengths, 1).reshape(-1)
        factors: npt.NDArray[np.float32] = (1.0 / np.maximum(lengths, 1)).astype(np.float32)
        return weights * np.repeat(factors, batch.lengths.reshape(-1))
    return weights


def to_dense(batch: FeatureBatch, *, device: torch.device | None = None) -> torch.Tensor:
    """Dense features: float32 [B, number of dense features]."""
    dense = torch.from_numpy(batch.dense)
    return dense if device is None else dense.to(device)
