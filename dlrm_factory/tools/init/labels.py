"""Check of a column as the label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.label import Label
from dlrm_factory.errors import DataError
from dlrm_factory.features.arrow import is_number, is_text

__all__ = ["LabelProfile"]

_CLICKS = {"1": 1.0, "true": 1.0, "0": 0.0, "false": 0.0}


@dataclass(slots=True)
class LabelProfile:
    """Counts of the label's column.

    Fields:
        rows, clicks, missing: cells, those that are clicks, and those that are neither.
        refused: the first values that are not 0 or 1; with a comparison, that are no numbers.
        numbers: how often each number comes, of the first thousand different ones.
    """

    label: Label
    rows: int = 0
    clicks: int = 0
    missing: int = 0
    refused: tuple[str, ...] = ()
    numbers: Counter[float] = field(default_factory=Counter)

    def add(self, column: pa.Array) -> None:
        """Take the cells of one chunk."""
        self.rows += len(column)
        if is_text(column.type):
            column = column.cast(pa.string())
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        if is_number(column.type) and pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        self.missing += column.null_count
        counted = column.drop_null().value_counts()
        for value, count in zip(
            counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True
        ):
            self._add(value, count)

    def _add(self, value: object, count: int) -> None:
        number = _number(value)
        if number is not None and (number in self.numbers or len(self.numbers) < 1000):
            self.numbers[number] += count
        if self.label.comparison is not None and number is not None:
            self.clicks += count * bool(self.label.comparison(number))
        elif self.label.comparison is None and number in (0.0, 1.0):
            self.clicks += int(number) * count
        else:
            self.missing += count
            if len(self.refused) < 5:
                self.refused += (str(value),)

    def check(self) -> None:
        """DataError unless there are clicks and others, and nothing else."""
        column = self.label.column
        if self.refused and (self.label.comparison is None or not self.numbers):
            numbers = [f"{number:g}" for number in sorted(self.numbers)][:10]
            found = ", ".join(numbers if len(numbers) > 2 else self.refused)
            raise DataError(
                f'the label\'s column "{column}" holds {found}, not just 0 and 1; {self._remedy()}'
            )
        labelled = self.rows - self.missing
        if self.clicks in (0, labelled):
            which = "no row" if not self.clicks else "every row"
            raise DataError(
                f'by the label "{column}" {which} of {labelled:,} is a click; a model needs both'
                + (f"; compare with another number: {self._remedy()}" if self.label.comparison else "")
            )

    def _remedy(self) -> str:
        column = self.label.column
        if len(self.numbers) > 1:
            numbers = sorted(self.numbers)
            ends = np.cumsum([self.numbers[number] for number in numbers])
            middle = numbers[int(np.searchsorted(ends, ends[-1] // 2, side="right"))]
            return f'say which numbers are clicks, for example --label "{column} >= {middle:g}"'
        return "write clicks as 1 and the rest as 0, or name another column"


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        if value.lower() in _CLICKS:
            return _CLICKS[value.lower()]
        try:
            number = float(value)
        except ValueError:
            return None
        return number if np.isfinite(number) else None
    return float(value) if isinstance(value, int | float) or hasattr(value, "__float__") else None
