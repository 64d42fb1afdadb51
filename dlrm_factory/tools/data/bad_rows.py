"""Rows that cannot be read: which, why, and whether there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import DataError

__all__ = ["BadRowLedger", "BadRows", "BadRowsOfKind", "WrongRows"]

_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRowsOfKind:
    """How many rows were left out for ``reason`` in ``column``. A row counts once, for its first mistake."""

    column: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRows:
    """What was left out.

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

    def __init__(self, most: float, rows: int | None = None) -> None:
        """``most``: the share of rows that may be bad. ``rows``: there are no more than these, if it is known."""
        self._most, self._rows = most, rows
        self._read = self._bad = 0
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.examples: list[str] = []

    def chunk(self, rows: int) -> WrongRows | None:
        """What takes down the bad ones of the next ``rows`` rows; None if the first one is an error."""
        return WrongRows(self, rows) if self._most > 0 else None

    def close_chunk(self, wrong: WrongRows | None) -> None:
        """The chunk is read. DataError if it is certain by now that too many rows are bad."""
        if wrong is None:
            return
        self._read += len(wrong.mask)
        self._bad += int(wrong.mask.sum())
        if self._rows is not None and self._bad > self._most * self._rows:
            raise self._too_many(f"{self._bad:,} of at most {self._rows:,} rows")

    def close(self) -> BadRows | None:
        """All rows are read. DataError if too many are bad; None if none was allowed."""
        if self._most <= 0:
            return None
        if self._bad > self._most * self._read:
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
            f"{share} cannot be read, more than the share of {self._most:g} that training.max_bad_rows allows "
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
        """Take down ``rows`` that were not before. ``message(k)`` is the whole text about ``rows[k]``."""
        unique, places = np.unique(rows, return_index=True)
        new = ~self.mask[unique]
        self.mask[unique] = True
        count = int(new.sum())
        if not count:
            return
        self._ledger.kinds[column, reason] += count
        room = _EXAMPLES - len(self._ledger.examples)
        self._ledger.examples += [message(int(place)) for place in places[new][: max(room, 0)]]
