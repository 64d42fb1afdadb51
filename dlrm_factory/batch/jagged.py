"""`FeatureBatch` → TorchRec's KeyedJaggedTensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration

__all__ = ["pooling_weights", "to_dense", "to_keyed_jagged_tensor"]


def to_keyed_jagged_tensor(
    batch: FeatureBatch, declaration: DLRMDeclaration, *, device: torch.device | None = None
) -> KeyedJaggedTensor:
    """KeyedJaggedTensor of F keys and stride B: values int64, lengths int32, feature-major.

    The keys are the sparse features in declared order. A DistributedModelParallel model keeps the key order
    of the first KeyedJaggedTensor it sees, so this order never changes for a model.
    A weighted model's has weights float32, see `pooling_weights`.
    """
    weights = pooling_weights(batch, declaration)
    return KeyedJaggedTensor(
        keys=declaration.sparse_names,
        values=torch.from_numpy(batch.values).to(device),
        lengths=torch.from_numpy(np.ascontiguousarray(batch.lengths.reshape(-1))).to(device),
        weights=None if weights is None else torch.from_numpy(weights).to(device),
        stride=len(batch),
    )


def pooling_weights(batch: FeatureBatch, declaration: DLRMDeclaration) -> npt.NDArray[np.float32] | None:
    """Factor of each row in its bag's sum, float32 [values]; None if the model takes no weights.

    TorchRec's weights are a whole model's or none, and no kernel of its takes them with mean pooling. So a
    weighted model sums everywhere, and here a mean becomes a sum with weights of 1 / length.
    """
    if not declaration.is_weighted:
        assert batch.weights is None
        return None
    weights = np.ones(len(batch.values), dtype=np.float32) if batch.weights is None else batch.weights
    pooling = {table.name: table.pooling for table in declaration.tables}
    means = [pooling[feature.table] == "mean" for feature in declaration.sparse_features]
    if any(means):
        lengths = np.where(np.array(means)[:, None], batch.lengths, 1).reshape(-1)
        factors: npt.NDArray[np.float32] = (1.0 / np.maximum(lengths, 1)).astype(np.float32)
        return weights * np.repeat(factors, batch.lengths.reshape(-1))
    return weights


def to_dense(batch: FeatureBatch, *, device: torch.device | None = None) -> torch.Tensor:
    """Dense features: float32 [B, number of dense features]."""
    dense = torch.from_numpy(batch.dense)
    return dense if device is None else dense.to(device)
