from __future__ import annotations

import msgspec
import numpy as np
import torch

from dlrm_factory.batch import FeatureBatch, to_dense, to_keyed_jagged_tensors
from dlrm_factory.config import DLRMDeclaration, SparseFeature, tiny

BATCH = FeatureBatch(
    dense=np.array([[0.5], [1.5], [2.5]], dtype=np.float32),
    lengths=np.array([[1, 1, 0], [2, 0, 1]], dtype=np.int32),
    values=np.array([7, 7, 3, 9, 4], dtype=np.int64),
)


def declared(*names: str, weighted: bool = False) -> DLRMDeclaration:
    """Features of the tiny preset's tables; item_tags is mean-pooled, and ``weighted`` makes user_id so."""
    features = [
        SparseFeature(name=name, table=f"t_{name}", weighted=weighted and i == 0)
        for i, name in enumerate(names)
    ]
    tables = [tiny().table(f"t_{name}") for name in names]
    return msgspec.structs.replace(tiny(), sparse_features=features, tables=tables)


def test_keyed_jagged_tensor_is_feature_major() -> None:
    kjt = to_keyed_jagged_tensors(BATCH, declared("user_id", "item_tags"))[0]
    assert kjt.weights_or_none() is None
    assert kjt.keys() == ["user_id", "item_tags"]
    assert kjt.stride() == 3
    assert kjt.values().dtype == torch.int64
    assert [ids.tolist() for ids in kjt["user_id"].to_dense()] == [[7], [7], []]
    assert [ids.tolist() for ids in kjt["item_tags"].to_dense()] == [[3, 9], [], [4]]


def test_ids_reach_the_tensor_exactly() -> None:
    values = np.array([45821459, 2**53 + 1], dtype=np.int64)
    batch = FeatureBatch(
        dense=np.zeros((1, 1), dtype=np.float32), lengths=np.array([[2]], dtype=np.int32), values=values
    )
    assert to_keyed_jagged_tensors(batch, declared("user_id"))[0].values().tolist() == [45821459, 2**53 + 1]


def test_no_samples() -> None:
    empty = FeatureBatch(
        dense=np.zeros((0, 1), dtype=np.float32),
        lengths=np.zeros((2, 0), dtype=np.int32),
        values=np.zeros(0, dtype=np.int64),
    )
    assert to_keyed_jagged_tensors(empty, declared("user_id", "item_tags"))[0].stride() == 0
    assert to_dense(empty).shape == (0, 1)


def test_dense() -> None:
    assert to_dense(BATCH).dtype == torch.float32
    assert to_dense(BATCH).tolist() == [[0.5], [1.5], [2.5]]


def test_a_weighted_model_sums_and_its_means_are_weights() -> None:
    declaration = declared("user_id", "item_tags", weighted=True)
    assert to_keyed_jagged_tensors(BATCH, declaration)[0].weights().tolist() == [1, 1, 0.5, 0.5, 1]
    weighted = FeatureBatch(
        dense=BATCH.dense,
        lengths=BATCH.lengths,
        values=BATCH.values,
        weights=np.array([2, -3, 1, 1, 1], dtype=np.float32),
    )
    weights = to_keyed_jagged_tensors(weighted, declaration)[0].weights()
    assert weights.dtype == torch.float32
    assert weights.tolist() == [2, -3, 0.5, 0.5, 1]
    assert weighted.weights is not None
    assert weighted.weights.tolist() == [2, -3, 1, 1, 1]
