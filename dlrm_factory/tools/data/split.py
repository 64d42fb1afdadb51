"""Training, validation and held-out rows: by hash, by file, or by time.

A split by time holds out the latest rows; the latest of the others are for validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.options import TrainingOptions
from dlrm_factory.errors import DataError
from dlrm_factory.features import shown
from dlrm_factory.features.arrow import is_number, is_text
from dlrm_factory.features.ids import hash_int64
from dlrm_factory.tools.data.bad_rows import BadRowLedger, Place, WrongRows
from dlrm_factory.tools.data.files import Chunk

__all__ = [
    "FileSplit",
    "HashSplit",
    "Split",
    "SplitChunk",
    "SplitMasks",
    "TimeSplit",
    "Times",
    "encode_times",
    "find_time_split",
    "first_rows",
    "is_held_out",
    "is_validation",
    "split_chunks",
    "split_rows",
]

Int64 = npt.NDArray[np.int64]
_STEPS = 2**53
Bool = npt.NDArray[np.bool_]
_NUMBER = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_ZONE = r"[0-9][Tt ].*(Z|[-+][0-9][0-9]:?([0-9][0-9])?)$"
_MERGE = 1 << 21


def split_rows(rows: int, *, holdout: float, seed: int) -> tuple[Int64, Int64]:
    """Row numbers (from 0) that train, and those held out; both ascending."""
    held_out = is_held_out(np.arange(rows, dtype=np.int64), holdout=holdout, seed=seed)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def is_held_out(rows: Int64, *, holdout: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mask of the row numbers ``rows`` that are held out, bool [len(rows)].

    A row is held out if SplitMix64(row xor SplitMix64(seed)), scaled to [0, 1), is below ``holdout``. So a
    row's split depends on its number and the seed alone, not on the batch size or on how many rows follow.
    """
    salt = hash_int64(np.array([seed], dtype=np.int64), 2**62)
    held_out: npt.NDArray[np.bool_] = hash_int64(rows ^ salt, _STEPS) < holdout * _STEPS
    return held_out


def is_validation(rows: Int64, *, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mask of the row numbers ``rows`` that would be validation rows, bool [len(rows)], if none were held out.

    Computed as `is_held_out`, by another hash, so that the two are independent.
    """
    found: npt.NDArray[np.bool_] = is_held_out(~rows, holdout=share, seed=seed)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitMasks:
    """Masks of n rows: ``held_out`` and ``validation``, bool [n], never both; the others train."""

    held_out: Bool
    validation: Bool

    @property
    def training(self) -> Bool:
        """Mask of the training rows, bool [n]."""
        return ~(self.held_out | self.validation)

    def take(self, kept: Bool) -> SplitMasks:
        """Masks of the rows in the mask ``kept``, bool [n]."""
        return SplitMasks(held_out=self.held_out[kept], validation=self.validation[kept])

    @classmethod
    def of(cls, held_out: Bool, validation: Bool | None = None) -> SplitMasks:
        """Masks from that of held-out rows, and from that of rows that validate unless they are held out, if any."""
        none = np.zeros(len(held_out), dtype=np.bool_)
        return cls(held_out=held_out, validation=none if validation is None else validation & ~held_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitChunk:
    """Raw rows with the masks of their splits.

    Fields:
        wrong: records those that cannot be read; None: the first one is an error.
    """

    chunk: Chunk
    masks: SplitMasks
    wrong: WrongRows | None = None


class Split(Protocol):
    """Division of rows into training, validation and held-out split."""

    def masks(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> SplitMasks:
        """Masks of ``chunk``, whose first row is number ``first`` of all the data, from 0.

        ``wrong`` records rows that belong to no split; without it the first one is a DataError.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HashSplit:
    """Splits by hashes of the row's number and the seed, see `is_held_out` and `is_validation`."""

    holdout: float
    validation: float
    seed: int

    @classmethod
    def of(cls, options: TrainingOptions) -> HashSplit:
        return cls(holdout=options.holdout, validation=options.validation_share, seed=options.seed)

    def masks(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> SplitMasks:
        numbers = _numbers(chunk, first)
        held_out = is_held_out(numbers, holdout=self.holdout, seed=self.seed)
        return SplitMasks.of(held_out, is_validation(numbers, share=self.validation, seed=self.seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSplit:
    """Splits by the file: ``sources`` are held out, whole; validation rows are by hash."""

    sources: frozenset[str]
    validation: float
    seed: int

    def masks(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> SplitMasks:
        held_out = np.full(chunk.columns.num_rows, chunk.source in self.sources)
        return SplitMasks.of(
            held_out, is_validation(_numbers(chunk, first), share=self.validation, seed=self.seed)
        )


def split_chunks(
    chunks: Iterable[Chunk], split: Split, ledger: BadRowLedger | None = None
) -> Iterator[SplitChunk]:
    """Chunks of all the data, in order, with the masks of their splits.

    ``ledger`` records bad rows, each chunk's by the time the next one is asked for. DataError for too many.
    """
    first = 0
    for chunk in chunks:
        wrong = None if ledger is None else ledger.chunk(chunk.columns.num_rows)
        yield SplitChunk(chunk=chunk, masks=split.masks(chunk, first, wrong), wrong=wrong)
        first += chunk.columns.num_rows
        if ledger is not None:
            ledger.close_chunk(wrong)


def _numbers(chunk: Chunk, first: int) -> npt.NDArray[np.int64]:
    return np.arange(first, first + chunk.columns.num_rows, dtype=np.int64)


def first_rows(chunks: Iterable[Chunk], rows: int | None) -> Iterator[Chunk]:
    """The first ``rows`` rows of ``chunks``; all of them for None. Reads no chunk more than that takes."""
    left = rows
    for chunk in chunks:
        if left is None or chunk.columns.num_rows < left:
            yield chunk
            left = None if left is None else left - chunk.columns.num_rows
            continue
        yield Chunk(source=chunk.source, first_row=chunk.first_row, columns=chunk.columns.slice(0, left))
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times of n rows.

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

    def masks(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> SplitMasks:
        times = _times(chunk, self.column, wrong).values
        return SplitMasks.of(times >= self.first, times >= self.validation)


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
    # Neither part is ever empty.
    return min(max(place, 1), len(counts) - 1)


def _times(chunk: Chunk, column: str, wrong: WrongRows | None) -> Times:
    place = Place(source=chunk.source, first_row=chunk.first_row, column=column, wrong=wrong)
    return encode_times(chunk.columns[column], place)


class _Counted:
    """Counts of distinct values."""

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
