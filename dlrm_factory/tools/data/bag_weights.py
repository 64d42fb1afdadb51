"""Arrow column of weights → one float32 for each id of its feature's bags."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_factory.features import shown
from dlrm_factory.tools.data.arrow_types import is_list, is_number, is_text
from dlrm_factory.tools.data.bag_lists import flatten_lists, flatten_scalars, split_text
from dlrm_factory.tools.data.places import Place

__all__ = ["encode_bag_weights"]

Int64 = npt.NDArray[np.int64]


def encode_bag_weights(
    column: pa.Array, lengths: Int64, separator: str, place: Place
) -> npt.NDArray[np.float32]:
    """Weights of bags with ``lengths`` ids: float32 [lengths.sum()]. A null in place of them all means 1 each.

    DataError unless there is a finite number for each id.
    """
    place = place.with_column(f"{place.column}.weights")
    raw, counts = _flatten(column, separator, place)
    missing = column.is_null().to_numpy(zero_copy_only=False)
    unequal = np.flatnonzero((counts != lengths) & ~missing)
    place.refuse(
        unequal,
        "not one weight for each id",
        lambda k: f"{lengths[unequal[k]]} ids have {counts[unequal[k]]} weights; give one weight for each id",
    )
    numbers = _numbers(raw, counts, place)
    if len(unequal):
        missing = missing.copy()
        missing[unequal] = True
        numbers = numbers[~np.repeat(missing, counts)]
    weights = np.ones(int(lengths.sum()), dtype=np.float32)
    weights[~np.repeat(missing, lengths)] = numbers
    return weights


def _flatten(column: pa.Array, separator: str, place: Place) -> tuple[pa.Array, Int64]:
    if is_list(column.type):
        return flatten_lists(column, place)
    if is_text(column.type):
        return split_text(column, separator)
    return flatten_scalars(column)


def _numbers(raw: pa.Array, counts: Int64, place: Place) -> npt.NDArray[np.float32]:
    if not (is_text(raw.type) or is_number(raw.type) or pa.types.is_null(raw.type)):
        raise place.column_error(f"holds {raw.type}; weights are numbers")
    try:
        numbers = raw.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        numbers = np.array([_number(text) for text in raw.to_pylist()])
    with np.errstate(over="ignore"):
        weights: npt.NDArray[np.float32] = numbers.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(weights))
    place.refuse(
        np.searchsorted(np.cumsum(counts), wrong, side="right").astype(np.int64),
        "weight not a finite number",
        lambda k: f"weight {shown(raw[int(wrong[k])].as_py())} is not a finite number",
    )
    weights[wrong] = 1
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
