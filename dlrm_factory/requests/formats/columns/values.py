"""One column of bags as simdjson parsed it → ids and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dlrm_factory.requests.formats.columns.nulls import STAND_IN
from dlrm_factory.requests.formats.fast.doubt import Doubt

__all__ = ["Bags", "bag_column"]

Int64 = npt.NDArray[np.int64]


class Bags(NamedTuple):
    """The bags of one feature.

    Fields:
        ids: int64.
        lengths: ids in each bag, or in every bag.
        arrays: how many bags were written as arrays.
        nulls: how many were written as null.
    """

    ids: Int64
    lengths: Sequence[int] | npt.NDArray[np.bool_] | int
    arrays: int
    nulls: int


def bag_column(column: Any, size: int, *, marked: bool) -> Bags:
    """``size`` bags of integers. Doubt, or an error, for anything else.

    Args:
        column: a simdjson array.
        marked: `STAND_IN` may stand for null.
    """
    if len(column) != size:
        raise Doubt
    ids: Int64 = np.frombuffer(column.as_buffer(of_type="i"), dtype=np.int64)
    gaps = ids == STAND_IN if marked else None
    if gaps is not None and not gaps.any():
        gaps = None
    # A column of arrays, or of both, may have as many ids as bags: then the count of brackets tells.
    if isinstance(column[0], int) and len(ids) == size:
        if gaps is None:
            return Bags(ids, 1, 0, 0)
        return Bags(ids[~gaps], ~gaps, 0, int(gaps.sum()))
    if gaps is None and not isinstance(column[0], int):
        try:
            return Bags(ids, list(map(len, column)), size, 0)
        except TypeError:  # ids and arrays of ids
            pass
    return _mixed(column.as_list(), marked=marked)


def _mixed(values: list[Any], *, marked: bool) -> Bags:
    """Of integers and arrays of integers."""
    nulls = values.count(STAND_IN) if marked else 0
    bags = [
        value if type(value) is list else [] if marked and value == STAND_IN else [value] for value in values
    ]
    ids = list(chain.from_iterable(bags))
    if not set(map(type, ids)) <= {int} or (marked and STAND_IN in ids):
        raise Doubt
    arrays = sum(type(value) is list for value in values)
    return Bags(np.array(ids, dtype=np.int64), list(map(len, bags)), arrays, nulls)
