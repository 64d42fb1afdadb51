"""Cells of features that cannot be read and count as missing: which, and how many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["CellLedger", "ChunkCells", "FeatureCells", "UnreadableCells"]

Bool = npt.NDArray[np.bool_]


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
        """Take down ``rows``, at least one. ``message(k)`` is the whole text about ``rows[k]``."""
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
        """Count the cells of the chunk's rows that ``kept``, bool [n], says."""
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
