"""Columns of numbers as tables have them: of any type, as text, with gaps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.features import shown
from dlrm_factory.features.arrow import decoded, is_number, is_text
from dlrm_factory.features.arrow import numbers as float_numbers
from dlrm_factory.tools.data.bad_rows import Place

__all__ = ["MISSING_WORDS", "encode_numbers", "plain_text"]

Float64 = npt.NDArray[np.float64]

# How tables write "nothing here" in a column of numbers. An empty CSV cell has become null before.
MISSING_WORDS = ("nan", "na", "n/a", "null", "none")


def encode_numbers(
    column: pa.Array, place: Place, missing: tuple[str, ...] = MISSING_WORDS, remedy: str = ""
) -> Float64:
    """Float64 [n]; NaN where null, one of the words ``missing``, or recorded as wrong.

    DataError for text that is no number, or a column of another kind; ``remedy`` ends its message.
    """
    column = decoded(column)
    kind = column.type
    if is_text(kind):
        column = _parse(plain_text(column), place, missing, remedy)
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (is_number(kind) or pa.types.is_null(kind)):
        raise place.column_error(f"holds {kind}; a dense feature or label needs numbers")
    return float_numbers(column, np.nan).astype(np.float64, copy=False)


def _parse(text: pa.Array, place: Place, missing: tuple[str, ...], remedy: str) -> pa.Array:
    try:
        numbers = text.cast(pa.float64())
    except pa.ArrowInvalid:
        pass  # some cell is not a plain number: look closer
    else:
        # "inf" is a number to Arrow, and may be a word that means missing.
        if not pc.any(pc.is_inf(numbers)).as_py():
            return numbers
    trimmed = pc.utf8_trim_whitespace(text)
    blank = pc.is_in(pc.utf8_lower(trimmed), pa.array(missing))
    trimmed = pc.if_else(blank, pa.scalar(None, pa.string()), trimmed)
    wanted = 1 if place.stops else None  # the first mistake is an error, or all are recorded
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


def plain_text(text: pa.Array) -> pa.Array:
    """Cast dictionary-encoded, large or view text to plain strings."""
    return text.cast(pa.string())
