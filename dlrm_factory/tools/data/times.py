"""Arrow column → times that can be compared: numbers, timestamps, dates, ISO 8601 text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.features import shown
from dlrm_factory.features.arrow import is_number, is_text
from dlrm_factory.tools.data.places import Place

__all__ = ["Times", "encode_times"]

Int64 = npt.NDArray[np.int64]

_NUMBER = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_ZONE = r"[0-9][Tt ].*(Z|[-+][0-9][0-9]:?([0-9][0-9])?)$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Of n rows.

    Fields:
        kind: ``number`` as they were, or ``time`` in microseconds since 1970 (UTC where no zone is given).
        values: int64 or float64 [n].
    """

    kind: Literal["number", "time"]
    values: npt.NDArray[np.int64] | npt.NDArray[np.float64]


def encode_times(column: pa.Array, place: Place) -> Times:
    """DataError for a row without a time, or text that is neither a number nor ISO 8601."""
    kind, is_time = column.type, False
    if is_text(kind):
        column, is_time = _parsed(pc.utf8_trim_whitespace(column.cast(pa.string())), place)
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        column, is_time = _microseconds(column), True
    elif not (is_number(kind) or pa.types.is_null(kind)):
        raise place.column_error(f"holds {kind}; a time is a number, a timestamp, a date or ISO 8601 text")
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64(), safe=False)
    else:
        column = pc.cast(column, pa.float64(), safe=False)
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
    place.refuse(missing, "no time", lambda _: "there is no time; every row needs one for split: time")
    values = pc.fill_null(column, pa.scalar(0, column.type)).to_numpy(zero_copy_only=False)
    return Times(kind="time" if is_time else "number", values=values)


def _microseconds(column: pa.Array) -> pa.Array:
    """Int64 since 1970; of a timestamp with a zone, in UTC."""
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    return column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())


def _parsed(text: pa.Array, place: Place) -> tuple[pa.Array, bool]:
    """Numbers, or microseconds (True)."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return text.cast(kind), False
        except pa.ArrowInvalid:
            continue
    numeric = pc.fill_null(pc.match_substring_regex(text, _NUMBER), True)
    if 2 * (pc.sum(numeric).as_py() - text.null_count) > len(text) - text.null_count:
        _refuse(text, np.flatnonzero(~numeric.to_numpy(zero_copy_only=False)), place)
        return pc.if_else(numeric, text, None).cast(pa.float64()), False
    # Arrow takes a zone either in every cell or in none.
    zoned = pc.fill_null(pc.match_substring_regex(text, _ZONE), False)
    plain, wrong_plain = _iso(pc.if_else(zoned, None, text), None)
    aware, wrong_aware = _iso(pc.if_else(zoned, text, None), "UTC")
    _refuse(text, np.sort(np.concatenate([wrong_plain, wrong_aware])), place)
    return pc.coalesce(plain, aware), True


def _refuse(text: pa.Array, wrong: Int64, place: Place) -> None:
    place.refuse(
        wrong,
        "not a time",
        lambda k: (
            f"{shown(text[int(wrong[k])].as_py())} is neither a number nor a time as 2026-01-31 17:00:00"
        ),
    )


def _iso(text: pa.Array, zone: str | None) -> tuple[pa.Array, Int64]:
    """Microseconds, null for wrong cells; and where those are. Halves what holds one."""
    for unit in ("us", "ns"):  # text with nine digits after the point fits the latter only
        try:
            return _microseconds(text.cast(pa.timestamp(unit, zone))), np.empty(0, dtype=np.int64)
        except pa.ArrowInvalid:
            continue
    if len(text) == 1:
        return pa.array([None], pa.int64()), np.zeros(1, dtype=np.int64)
    middle = len(text) // 2
    first, wrong = _iso(text.slice(0, middle), zone)
    second, others = _iso(text.slice(middle), zone)
    return pa.concat_arrays([first, second]), np.concatenate([wrong, others + middle])
