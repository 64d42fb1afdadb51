"""Plausible raw values for a declared model, as a client would send them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import DenseFeature, DLRMDeclaration, SparseFeature

__all__ = ["Columns", "random_columns"]

Columns: TypeAlias = dict[str, list[Any]]

_MISSING = 0.02  # share of cells left empty
_ZIPF_SHIFT = 10.0
_LONGEST_BAG = 5
_BAGS_UP_TO = 100  # a higher max_length limits requests and says little of the data: one id then


def random_columns(declaration: DLRMDeclaration, size: int, rng: np.random.Generator) -> Columns:
    """``size`` samples by feature name: numbers, ids or lists of ids, null where a cell is empty.

    Ids are Zipf-like over the whole table: P(row k) ∝ 1 / (k + 10).
    """
    columns: Columns = {}
    for dense in declaration.dense_features:
        columns[dense.name] = _with_gaps(_numbers(dense, size, rng).tolist(), rng)
    for sparse in declaration.sparse_features:
        rows = declaration.table(sparse.table).num_embeddings
        columns[sparse.name] = _with_gaps(_bags(sparse, rows, size, rng), rng)
    return columns


def _with_gaps(values: list[Any], rng: np.random.Generator) -> list[Any]:
    for i in np.flatnonzero(rng.random(len(values)) < _MISSING):
        values[i] = None
    return values


def _numbers(feature: DenseFeature, size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Float64 [size]. Counts around the default where a logarithm is taken, else numbers around it."""
    if feature.takes_log:
        return np.round(np.expm1(np.abs(np.log1p(max(feature.default, 0)) + rng.normal(0, 1, size))), 2)
    return np.round(feature.default + rng.normal(0, max(1.0, abs(feature.default) / 2), size), 3)


def _bags(feature: SparseFeature, rows: int, size: int, rng: np.random.Generator) -> list[Any]:
    longest = min(feature.max_length, _LONGEST_BAG) if feature.max_length <= _BAGS_UP_TO else 1
    if longest == 1 and not feature.weighted:
        return _ids(feature, rows, size, rng)
    lengths = rng.integers(1, longest, size, endpoint=True).tolist()
    return [_bag(feature, _ids(feature, rows, length, rng), rng) for length in lengths]


def _bag(feature: SparseFeature, ids: list[Any], rng: np.random.Generator) -> Any:
    if not feature.weighted:
        return ids
    return {"ids": ids, "weights": np.round(rng.random(len(ids)), 3).tolist()}


def _ids(feature: SparseFeature, rows: int, size: int, rng: np.random.Generator) -> list[Any]:
    """Rows, or text such as ``user_17`` where ids are hashed or looked up in a vocabulary."""
    spread = ((rows + _ZIPF_SHIFT) / _ZIPF_SHIFT) ** rng.random(size)
    numbers = np.minimum(_ZIPF_SHIFT * (spread - 1), rows - 1).astype(np.int64).tolist()
    if feature.ids == "index":
        return list(numbers)
    name = feature.name.removesuffix("_id")
    return [f"{name}_{number}" for number in numbers]
