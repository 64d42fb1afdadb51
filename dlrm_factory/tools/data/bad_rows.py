"""Rows and cells of training data that cannot be read: where they are, how many, and whether there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import DataError

__all__ = [
    "BadRowLedger",
    "BadRows",
    "BadRowsOfKind",
    "CellLedger",
    "ChunkCells",
    "FeatureCells",
    "Place",
    "UnreadableCells",
    "WrongRows",
]

_EXAMPLES = 5
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRowsOfKind:
    """Number of rows left out for ``reason`` in ``column``. A row counts once, for its first mistake."""

    column: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRows:
    """Rows that were left out.

    Fields:
        rows: how many were left out.
        read: how many were read, with those.
        kinds: by column and reason, the most frequent first.
        examples: the first few, each with its place.
    """

    rows: int
    read: int
    kinds: tuple[BadRowsOfKind, ...]
    examples: tuple[str, ...]


class BadRowLedger:
    """Counts bad rows over one pass of the data."""

    def __init__(self, max_share: float, rows: int | None = None) -> None:
        """``max_share``: the share of rows that may be bad. ``rows``: there are no more than these, if it is known."""
        self._max_share, self._max_rows = max_share, rows
        self._read = self._bad = 0
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.examples: list[str] = []

    def chunk(self, rows: int) -> WrongRows | None:
        """Record of the bad ones among the next ``rows`` rows; None if the first one is an error."""
        return WrongRows(self, rows) if self._max_share > 0 else None

    def close_chunk(self, wrong: WrongRows | None) -> None:
        """The chunk is read. DataError if it is certain by now that too many rows are bad."""
        if wrong is None:
            return
        self._read += len(wrong.mask)
        self._bad += int(wrong.mask.sum())
        if self._max_rows is not None and self._bad > self._max_share * self._max_rows:
            raise self._too_many(f"{self._bad:,} of at most {self._max_rows:,} rows")

    def close(self) -> BadRows | None:
        """All rows are read. DataError if too many are bad; None if none was allowed."""
        if self._max_share <= 0:
            return None
        if self._bad > self._max_share * self._read:
            raise self._too_many(f"{self._bad:,} of {self._read:,} rows")
        kinds = tuple(
            BadRowsOfKind(column=column, reason=reason, rows=rows)
            for (column, reason), rows in self.kinds.most_common()
        )
        return BadRows(rows=self._bad, read=self._read, kinds=kinds, examples=tuple(self.examples))

    def _too_many(self, share: str) -> DataError:
        kinds = "; ".join(
            f'column "{column}", {reason}: {rows:,}' for (column, reason), rows in self.kinds.most_common(5)
        )
        examples = "".join(f"\n  {example}" for example in self.examples)
        return DataError(
            f"{share} cannot be read, more than the share of {self._max_share:g} that training.max_bad_rows allows "
            f"({kinds}); mend the data or the declaration, or raise max_bad_rows. The first:{examples}"
        )


class WrongRows:
    """The bad rows of one chunk: ``mask`` is bool [n]."""

    def __init__(self, ledger: BadRowLedger, rows: int) -> None:
        self.mask: npt.NDArray[np.bool_] = np.zeros(rows, dtype=np.bool_)
        self._ledger = ledger

    def add(
        self, column: str, rows: npt.NDArray[np.int64], reason: str, message: Callable[[int], str]
    ) -> None:
        """Record ``rows`` that were not before. ``message(k)`` is the whole text about ``rows[k]``."""
        unique, places = np.unique(rows, return_index=True)
        new = ~self.mask[unique]
        self.mask[unique] = True
        count = int(new.sum())
        if not count:
            return
        self._ledger.kinds[column, reason] += count
        room = _EXAMPLES - len(self._ledger.examples)
        self._ledger.examples += [message(int(place)) for place in places[new][: max(room, 0)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableCells:
    """Number of cells of ``feature`` that count as missing. ``example``: the first, with its place."""

    feature: str
    cells: int
    example: str

    def __str__(self) -> str:
        return (
            f'1 cell of "{self.feature}" cannot be read and counts as missing'
            if self.cells == 1
            else f'{self.cells:,} cells of "{self.feature}" cannot be read and count as missing'
        )


class FeatureCells:
    """One feature's cells in a chunk. ``mask``: those that cannot be read, bool [n]."""

    def __init__(self, rows: int) -> None:
        self.mask: Bool = np.zeros(rows, dtype=np.bool_)
        self.example = ""

    def add(self, rows: npt.NDArray[np.int64], message: Callable[[int], str]) -> None:
        """Record ``rows``, at least one. ``message(k)`` is the whole text about ``rows[k]``."""
        self.mask[rows] = True
        self.example = self.example or message(0)


@dataclass(frozen=True, slots=True)
class ChunkCells:
    """A chunk's `FeatureCells` by feature, only of features that have such cells."""

    features: Mapping[str, FeatureCells]


class CellLedger:
    """Counts unreadable cells over one pass of the data."""

    def __init__(self) -> None:
        self._cells: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, cells: ChunkCells, kept: Bool) -> None:
        """Count the cells in the chunk's rows of the mask ``kept``, bool [n]."""
        for feature, found in cells.features.items():
            count = int(np.count_nonzero(found.mask & kept))
            if count:
                self._cells[feature] += count
                self._examples.setdefault(feature, found.example)

    def close(self) -> tuple[UnreadableCells, ...]:
        """Return what was counted, the most frequent first."""
        return tuple(
            UnreadableCells(feature=feature, cells=cells, example=self._examples[feature])
            for feature, cells in self._cells.most_common()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A column of one chunk of rows.

    Fields:
        source: the file's name.
        first_row: number of the chunk's first row. Rows are counted from 1; a CSV header is not counted.
        column: the column's name.
        wrong: records rows that cannot be read; None: the first one is an error.
        cells: records cells that cannot be read, in place of the rows; None: the column's cells may not be missing.
    """

    source: str
    first_row: int
    column: str
    wrong: WrongRows | None = None
    cells: FeatureCells | None = None

    @property
    def stops(self) -> bool:
        """The first mistake is an error."""
        return self.wrong is None and self.cells is None

    def with_column(self, column: str) -> Place:
        """The same rows of another column."""
        return replace(self, column=column)

    def refuse(self, rows: npt.NDArray[np.int64], reason: str, problem: Callable[[int], str]) -> None:
        """Raise DataError for the first of ``rows``, or record them all; without any do nothing.

        The caller goes on with anything that is valid in their place.

        Args:
            rows: of the chunk, from 0, ascending.
            reason: what is wrong with all of them.
            problem: what is wrong with ``rows[k]``, in full.
        """
        if not len(rows):
            return
        if self.cells is not None:
            self.cells.add(rows, lambda k: str(self.error(int(rows[k]), problem(k))))
            return
        if self.wrong is None:
            raise self.error(int(rows[0]), problem(0))
        self.wrong.add(self.column, rows, reason, lambda k: str(self.error(int(rows[k]), problem(k))))

    def error(self, index: int, problem: str) -> DataError:
        """The error to raise for row ``index`` of the chunk (from 0)."""
        return DataError(f'{self.source}, row {self.first_row + index}, column "{self.column}": {problem}')

    def column_error(self, problem: str) -> DataError:
        """The error to raise for the whole column."""
        return DataError(f'{self.source}, column "{self.column}": {problem}')
