"""Arrow columns of lists, or of text that is split into lists → flat values and lengths."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.tools.data.places import Place

__all__ = ["flatten_lists", "flatten_scalars", "split_text"]

Int64 = npt.NDArray[np.int64]


def flatten_lists(column: pa.Array, place: Place) -> tuple[pa.Array, Int64]:
    """The values of all lists one after another, and int64 [n], how many each list has; 0 for a null list.

    DataError for a null within a list.
    """
    column = column.cast(pa.large_list(column.type.value_type))
    lengths = _list_lengths(column)
    values = pc.list_flatten(column)
    if not values.null_count:
        return values, lengths
    nulls = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
    rows = np.searchsorted(np.cumsum(lengths), nulls, side="right").astype(np.int64)
    problem = "the bag holds a null; leave it out, or use a null in place of the whole bag"
    place.refuse(rows, "null in a bag", lambda _: problem)
    return values.drop_null(), lengths - np.bincount(rows, minlength=len(lengths))


def split_text(text: pa.Array, separator: str) -> tuple[pa.Array, Int64]:
    """``"3|9"`` → 3 and 9; empty parts are left out, so ``"3|"`` is the bag of 3."""
    text = text.cast(pa.string())
    bags = pc.split_pattern(text, separator)
    values = pc.list_flatten(bags)
    kept = pc.not_equal(values, "")
    samples = np.repeat(np.arange(len(text)), _list_lengths(bags))
    lengths = np.bincount(samples[kept.to_numpy(zero_copy_only=False)], minlength=len(text))
    return values.filter(kept), lengths.astype(np.int64)


def flatten_scalars(column: pa.Array) -> tuple[pa.Array, Int64]:
    """One value a sample, none where it is null or NaN."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column.drop_null(), column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)


def _list_lengths(column: pa.Array) -> Int64:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
