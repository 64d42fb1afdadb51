"""Where in the training data something is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from dlrm_factory.errors import DataError

__all__ = ["Place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A column of one chunk of rows.

    Fields:
        source: the file's name.
        first_row: number of the chunk's first row. Rows are counted from 1; a CSV header is not counted.
        column: the column's name.
    """

    source: str
    first_row: int
    column: str

    def with_column(self, column: str) -> Place:
        """The same rows of another column."""
        return Place(source=self.source, first_row=self.first_row, column=column)

    def error(self, index: int, problem: str) -> DataError:
        """The error to raise for row ``index`` of the chunk (from 0)."""
        return DataError(f'{self.source}, row {self.first_row + index}, column "{self.column}": {problem}')

    def column_error(self, problem: str) -> DataError:
        """The error to raise for the whole column."""
        return DataError(f'{self.source}, column "{self.column}": {problem}')
