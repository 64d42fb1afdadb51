"""The split by time: the latest rows are held out, and the latest of the others are for validation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.bad_rows import BadRowLedger, WrongRows
from dlrm_factory.tools.data.click_files import Chunk
from dlrm_factory.tools.data.places import Place
from dlrm_factory.tools.data.sides import Sides
from dlrm_factory.tools.data.times import Times, encode_times

__all__ = ["TimeSplit", "find_time_split"]

_MERGE = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSplit:
    """Rows whose ``column`` is ``first`` or later are held out; those before it from ``validation`` on are for that.

    Fields:
        kind: of what both are: numbers, or microseconds since 1970.
    """

    column: str
    kind: Literal["number", "time"]
    first: float
    validation: float

    def sides(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> Sides:
        times = _times(chunk, self.column, wrong).values
        return Sides.of(times >= self.first, times >= self.validation)


def find_time_split(
    chunks: Iterable[Chunk], column: str, *, holdout: float, ledger: BadRowLedger, validation: float = 0.0
) -> TimeSplit:
    """The split that holds out the latest ``holdout`` of the rows, and all rows that are as late as the first of them.

    In the same way the latest ``validation`` of the other rows are for validation, if any.
    ``chunks`` need only hold ``column``. Takes 16 bytes for each distinct time. DataError for a row without a time
    (with ``ledger``: for too many of them), or if all rows are of one time.
    """
    counted = _Counted()
    kinds: dict[str, str] = {}
    for chunk in chunks:
        wrong = ledger.chunk(chunk.columns.num_rows)
        times = _times(chunk, column, wrong)
        ledger.close_chunk(wrong)
        values = times.values if wrong is None else times.values[~wrong.mask]
        if len(values):
            kinds.setdefault(times.kind, f"{chunk.source}, row {chunk.first_row}")
            counted.add(values)
        if len(kinds) > 1:
            places = " and ".join(f"{kind}s from {place}" for kind, place in kinds.items())
            raise DataError(f'column "{column}" holds {places}; a time column is all numbers or all times')
    ledger.close()
    distinct, counts = counted.sorted()
    if len(distinct) < 2:
        raise DataError(
            f'column "{column}" has {"one time" if len(distinct) else "no time"} in all rows; '
            "a split by time needs several; declare split: hash"
        )
    place = _threshold(counts, share=holdout)
    if validation and place < 2:
        raise DataError(
            f'column "{column}" has one time in all rows that are not held out; a validation part by time needs '
            "several; declare split: hash, or leave validation and early_stopping out"
        )
    first, validates = distinct[place].item(), place
    if validation:
        validates = _threshold(counts[:place], share=validation)
    return TimeSplit(
        column=column,
        kind="number" if "number" in kinds else "time",
        first=first,
        validation=distinct[validates].item(),
    )


def _threshold(counts: npt.NDArray[np.int64], *, share: float) -> int:
    """The place of the first of at least two times that is in the latest ``share`` of the rows."""
    ends = np.cumsum(counts)
    # The last row before the part if there were no ties; what is as late as its successor is in it.
    before = int(np.floor(ends[-1] * (1 - share)))
    place = int(np.searchsorted(ends, before, side="right"))
    # There is always something on both sides.
    return min(max(place, 1), len(counts) - 1)


def _times(chunk: Chunk, column: str, wrong: WrongRows | None) -> Times:
    place = Place(source=chunk.source, first_row=chunk.first_row, column=column, wrong=wrong)
    return encode_times(chunk.columns[column], place)


class _Counted:
    """How often each value comes."""

    def __init__(self) -> None:
        self._parts: list[tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]] = []

    def add(self, values: npt.NDArray[np.generic]) -> None:
        self._parts.append(np.unique(values, return_counts=True))
        recent = sum(len(part) for part, _ in self._parts[1:])
        if recent > max(len(self._parts[0][0]), _MERGE):
            self._parts = [self.sorted()]

    def sorted(self) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        if not self._parts:
            return np.empty(0), np.empty(0, dtype=np.int64)
        values = np.concatenate([part for part, _ in self._parts])
        counts = np.concatenate([part for _, part in self._parts])
        distinct, inverse = np.unique(values, return_inverse=True)
        return distinct, np.bincount(inverse, weights=counts, minlength=len(distinct)).astype(np.int64)
