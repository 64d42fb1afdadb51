"""The split by time: the latest rows are held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import DataError
from dlrm_factory.training.bad_rows import BadRowLedger, WrongRows
from dlrm_factory.training.click_files import Chunk
from dlrm_factory.training.places import Place
from dlrm_factory.training.times import Times, encode_times

__all__ = ["TimeSplit", "find_time_split"]

_MERGE = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSplit:
    """Rows whose ``column`` is ``first`` or later are held out.

    Fields:
        kind: of what ``first`` is: a number, or microseconds since 1970.
    """

    column: str
    kind: Literal["number", "time"]
    first: float

    def held_out(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> npt.NDArray[np.bool_]:
        times = _times(chunk, self.column, wrong)
        held_out: npt.NDArray[np.bool_] = times.values >= self.first
        return held_out


def find_time_split(
    chunks: Iterable[Chunk], column: str, *, holdout: float, ledger: BadRowLedger
) -> TimeSplit:
    """The split that holds out the latest ``holdout`` of the rows, and all rows that are as late as the first of them.

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
    return TimeSplit(
        column=column,
        kind="number" if "number" in kinds else "time",
        first=_threshold(*counted.sorted(), holdout=holdout, column=column),
    )


def _threshold(
    values: npt.NDArray[np.generic], counts: npt.NDArray[np.int64], *, holdout: float, column: str
) -> float:
    if len(values) < 2:
        raise DataError(
            f'column "{column}" has {"one time" if len(values) else "no time"} in all rows; '
            "a split by time needs several; declare split: hash"
        )
    ends = np.cumsum(counts)
    # The last row that trains if there were no ties; what is as late as its successor is held out.
    trains = int(np.floor(ends[-1] * (1 - holdout)))
    place = int(np.searchsorted(ends, trains, side="right"))
    # The earliest rows always train, and there is always something held out.
    return values[min(max(place, 1), len(values) - 1)].item()


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
