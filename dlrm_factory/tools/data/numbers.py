"""Arrow column → numbers: dense features and the label."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.declaration import DenseFeature
from dlrm_factory.config.label import Comparison
from dlrm_factory.features import shown
from dlrm_factory.tools.data.arrow_types import is_number, is_text
from dlrm_factory.tools.data.places import Place

__all__ = ["encode_dense", "encode_label"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# How tables write "nothing here" in a column of numbers. An empty CSV cell has become null before.
_MISSING = ("nan", "na", "n/a", "null", "none")
_REMEDY = "; mend it, or declare the feature unreadable: missing"
_BOOLEANS = {"true": "1", "false": "0"}


def encode_dense(column: pa.Array, feature: DenseFeature, place: Place) -> npt.NDArray[np.float32]:
    """Raw numbers: float32 [n], not yet transformed. Null and NaN take the declared default.

    DataError for text, or for a number that float32 cannot hold; or ``place`` takes the cell down, which then takes
    the default, too.
    """
    remedy = _REMEDY if place.cells is None else ""
    numbers = _numbers(column, place, remedy)
    with np.errstate(over="ignore"):
        dense = np.where(np.isnan(numbers), feature.default, numbers).astype(np.float32)
    infinite = np.flatnonzero(~np.isfinite(dense))
    place.refuse(
        infinite,
        "not a finite number",
        lambda k: f"{shown(column[int(infinite[k])].as_py())} is not a finite float32 number{remedy}",
    )
    dense[infinite] = feature.default
    return dense


def encode_label(
    column: pa.Array, place: Place, comparison: Comparison | None = None
) -> npt.NDArray[np.float32]:
    """Clicks: float32 [n] of 0 and 1, from 0/1, true/false; or by a comparison, from any numbers.

    DataError for anything else.
    """
    raw = column
    if comparison is None and is_text(column.type):
        column = _replace(pc.utf8_lower(_plain(column)), _BOOLEANS)
    numbers = _numbers(column, place)
    missing = np.isnan(numbers)
    wrong = missing if comparison else (numbers != 0) & (numbers != 1)
    needed = "a number" if comparison else "0 or 1 (or false or true)"

    def refuse(rows: Int64, reason: str) -> None:
        def problem(k: int) -> str:
            found = raw[int(rows[k])].as_py()
            return f"the label is {'nothing' if found is None else shown(found)}; it must be {needed}"

        place.refuse(rows, reason, problem)

    if place.wrong is not None:
        refuse(np.flatnonzero(missing), "no label")
    refuse(np.flatnonzero(wrong), f"label is not {needed}")
    clicks = comparison(numbers) if comparison else numbers == 1
    labels: npt.NDArray[np.float32] = (clicks & ~missing).astype(np.float32)
    return labels


def _numbers(column: pa.Array, place: Place, remedy: str = "") -> Float64:
    """float64 [n]; NaN where null, or taken down."""
    kind = column.type
    if is_text(kind):
        column = _parse(_plain(column), place, remedy)
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (is_number(kind) or pa.types.is_null(kind)):
        raise place.column_error(f"holds {kind}; a dense feature or label needs numbers")
    return pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _parse(text: pa.Array, place: Place, remedy: str) -> pa.Array:
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        pass  # some cell is not a plain number: look closer
    trimmed = pc.utf8_trim_whitespace(text)
    missing = pc.is_in(pc.utf8_lower(trimmed), pa.array(_MISSING))
    trimmed = pc.if_else(missing, pa.scalar(None, pa.string()), trimmed)
    wanted = 1 if place.stops else None  # the first mistake is an error, or all are taken down
    wrong = np.fromiter(islice(_not_numbers(trimmed, 0), wanted), dtype=np.int64)
    place.refuse(
        wrong, "not a number", lambda k: f"{shown(trimmed[int(wrong[k])].as_py())} is not a number{remedy}"
    )
    mask = np.zeros(len(trimmed), dtype=np.bool_)
    mask[wrong] = True
    return pc.if_else(pa.array(mask), pa.scalar(None, pa.string()), trimmed).cast(pa.float64())


def _not_numbers(text: pa.Array, first: int) -> Iterator[int]:
    """Places of the cells that are no numbers, ascending. Halves what holds one, so few of them cost little."""
    try:
        text.cast(pa.float64())
    except pa.ArrowInvalid:
        if len(text) == 1:
            yield first
            return
        middle = len(text) // 2
        yield from _not_numbers(text.slice(0, middle), first)
        yield from _not_numbers(text.slice(middle), first + middle)


def _replace(text: pa.Array, replacements: dict[str, str]) -> pa.Array:
    for old, new in replacements.items():
        text = pc.if_else(pc.equal(text, old), new, text)
    return text


def _plain(text: pa.Array) -> pa.Array:
    """Dictionary-encoded, large or view text as plain string."""
    return text.cast(pa.string())
