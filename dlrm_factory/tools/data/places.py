"""Where in the training data something is wrong, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.bad_rows import WrongRows
from dlrm_factory.tools.data.unreadable_cells import FeatureCells

__all__ = ["Place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A column of one chunk of rows.

    Fields:
        source: the file's name.
        first_row: number of the chunk's first row. Rows are counted from 1; a CSV header is not counted.
        column: the column's name.
        wrong: takes down rows that cannot be read; None: the first one is an error.
        cells: takes down cells that cannot be read, in place of the rows; None: they are no cells that may be missing.
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
        """Raise DataError for the first of ``rows``, or take them all down; without any do nothing.

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
