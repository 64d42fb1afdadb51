"""Columns that a request may hold, as the encoder takes them: the types that JSON has, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.features.arrow import (
    above_int64,
    flatten_column,
    integers,
    is_list,
    is_number,
    is_text,
    plain_type,
    pyarrow,
)
from dlrm_factory.features.arrow import numbers as float_numbers

__all__ = ["as_list", "bags", "numbers", "wrong_type"]

Int64 = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.integer[Any]]

_SEND = "send numbers, strings, or lists of them"


def wrong_type(kind: Any) -> str | None:
    """Reason that a column of type ``kind`` cannot be a feature; None if it may be one."""
    return None if _is_known(kind) else f"has the type {str(kind)[:100]}; {_SEND}"


def numbers(column: Any, default: float) -> npt.NDArray[np.floating[Any]] | None:
    """Float [B], nulls replaced by ``default``; None if the column does not hold numbers."""
    return float_numbers(column, default) if is_number(column.type) else None


def bags(column: Any) -> tuple[Lengths, Int64] | None:
    """Lengths [B] and ids of bags of integers; None if the column does not hold such, all within int64."""
    values, lengths = flatten_column(column)
    if values.null_count or not pyarrow().types.is_integer(values.type) or above_int64(values) is not None:
        return None
    return lengths, integers(values)


def as_list(column: Any) -> list[Any]:
    """Values as JSON would give them."""
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


def _is_known(kind: Any) -> bool:
    types = pyarrow().types
    kind = plain_type(kind)
    if is_list(kind):
        return _is_known(kind.value_type)
    if types.is_struct(kind):  # a weighted bag
        return all(_is_known(field.type) for field in kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_decimal(kind):  # JSON has none
        return False
    return is_number(kind) or is_text(kind) or bool(types.is_boolean(kind) or types.is_null(kind))
