"""Arrow column → numbers: dense features and the label."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.declaration import DenseFeature
from dlrm_factory.errors import DataError
from dlrm_factory.features import shown
from dlrm_factory.training.arrow_types import is_number, is_text
from dlrm_factory.training.places import Place

__all__ = ["encode_dense", "encode_label"]

Float64 = npt.NDArray[np.float64]

# How tables write "nothing here" in a column of numbers. An empty CSV cell has become null before.
_MISSING = ("nan", "na", "n/a", "null", "none")
_BOOLEANS = {"true": "1", "false": "0"}


def encode_dense(column: pa.Array, feature: DenseFeature, place: Place) -> npt.NDArray[np.float32]:
    """Raw numbers: float32 [n], not yet transformed. Null and NaN take the declared default.

    DataError for text, or for a number that float32 cannot hold.
    """
    numbers = _numbers(column, place)
    with np.errstate(over="ignore"):
        dense = np.where(np.isnan(numbers), feature.default, numbers).astype(np.float32)
    infinite = np.flatnonzero(~np.isfinite(dense))
    if len(infinite):
        i = int(infinite[0])
        raise place.error(i, f"{shown(column[i].as_py())} is not a finite float32 number")
    return dense


def encode_label(column: pa.Array, place: Place) -> npt.NDArray[np.float32]:
    """Clicks: float32 [n] of 0 and 1, from 0/1, true/false. DataError for anything else."""
    if is_text(column.type):
        column = _replace(pc.utf8_lower(_plain(column)), _BOOLEANS)
    labels = _numbers(column, place)
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        i = int(wrong[0])
        found = column[i].as_py()
        found = "nothing" if found is None else shown(found)
        raise place.error(i, f"the label is {found}; it must be 0 or 1 (or false or true)")
    return labels.astype(np.float32)


def _numbers(column: pa.Array, place: Place) -> Float64:
    """float64 [n]; NaN where null."""
    kind = column.type
    if is_text(kind):
        column = _parse(_plain(column), place)
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (is_number(kind) or pa.types.is_null(kind)):
        raise place.column_error(f"holds {kind}; a dense feature or label needs numbers")
    return pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _parse(text: pa.Array, place: Place) -> pa.Array:
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        pass  # some cell is not a plain number: look closer
    trimmed = pc.utf8_trim_whitespace(text)
    missing = pc.is_in(pc.utf8_lower(trimmed), pa.array(_MISSING))
    trimmed = pc.if_else(missing, pa.scalar(None, pa.string()), trimmed)
    try:
        return trimmed.cast(pa.float64())
    except pa.ArrowInvalid:
        raise _first_text(trimmed, place) from None


def _first_text(text: pa.Array, place: Place) -> DataError:
    """The error for the first cell of ``text`` that is not a number; there is one."""
    for i, cell in enumerate(text):
        try:
            cell.cast(pa.float64())
        except pa.ArrowInvalid:
            return place.error(i, f"{shown(cell.as_py())} is not a number")
    raise AssertionError("every cell is a number, but not the column")


def _replace(text: pa.Array, replacements: dict[str, str]) -> pa.Array:
    for old, new in replacements.items():
        text = pc.if_else(pc.equal(text, old), new, text)
    return text


def _plain(text: pa.Array) -> pa.Array:
    """Dictionary-encoded, large or view text as plain string."""
    return text.cast(pa.string())
