"""One Arrow array → NumPy, without a copy where the type allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.requests.formats.arrow.kinds import is_list, is_number, is_text
from dlrm_factory.requests.formats.arrow.stream import pyarrow

__all__ = ["as_list", "bags", "numbers"]

Int64 = npt.NDArray[np.int64]
_MOST = np.uint64(2**63 - 1)

Lengths = npt.NDArray[np.integer[Any]]


def numbers(column: Any, default: float) -> npt.NDArray[np.floating[Any]] | None:
    """Float [B], nulls replaced by ``default``; None if the column does not hold numbers."""
    if not is_number(column.type):
        return None
    if column.null_count:
        column = column.cast("float64", safe=False).fill_null(default)
    values = _plain(column)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def bags(column: Any) -> tuple[Lengths, Int64] | None:
    """Lengths [B] and ids of bags of integers; None if the column does not hold such, all within int64."""
    types = pyarrow().types
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_integer(column.type):
        lengths = np.ones(len(column), dtype=np.int32)
        if column.null_count:
            lengths[column.is_null().to_numpy(zero_copy_only=False)] = 0
            column = column.drop_null()
    elif is_list(column.type):
        lengths = _plain(pyarrow().compute.list_value_length(column).fill_null(0))
        # Not `values`: flatten leaves out what a sliced array or a null list hides.
        column = column.flatten()
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
    if column.null_count or not types.is_integer(column.type):
        return None
    ids = _plain(column)
    if ids.dtype == np.uint64 and len(ids) and ids.max() > _MOST:
        return None
    return lengths, ids.astype(np.int64, copy=False)


def as_list(column: Any) -> list[Any]:
    """The values as JSON would give them."""
    types = pyarrow().types
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if column.null_count == 0 and (is_number(kind) or is_text(kind)):
        # Some times faster than to_pylist, which makes a scalar of each value first.
        values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return values
    values = column.to_pylist()
    return values


def _plain(column: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return values
