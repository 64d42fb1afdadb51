"""Label of the clicks: a column of 0 and 1, or a comparison such as ``rating >= 4``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Comparison", "Label", "label_columns", "parse_label"]

Operator = Literal[">=", "<=", "==", "!=", ">", "<"]

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(
    r"\s*(?P<column>.+?)\s*(?P<operator>>=|<=|==|!=|>|<)\s*"
    r"(?P<number>[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?)\s*"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """``operator`` and ``number``: a row whose number is so is a click."""

    operator: str
    number: float

    def __call__(self, numbers: Any) -> Any:
        """Compare each of ``numbers``: a mask."""
        return _OPERATORS[self.operator](numbers, self.number)

    def example(self, click: bool) -> float:
        """A number that makes a click, or none."""
        tries = (self.number, self.number + 1, self.number - 1)
        return next(number for number in tries if bool(self(number)) == click)


@dataclass(frozen=True, slots=True)
class Label:
    """A column and how it becomes 0 or 1; without a comparison it holds them."""

    column: str
    comparison: Comparison | None = None


def parse_label(text: str) -> Label:
    """``click`` is that column; ``rating >= 4`` compares the column ``rating`` with a number."""
    match = _COMPARISON.fullmatch(text)
    if match is None:
        return Label(text)
    return Label(match["column"], Comparison(match["operator"], float(match["number"])))


def label_columns(labels: Iterable[str]) -> list[str]:
    """Columns of the data that ``labels`` come from, each once."""
    return list(dict.fromkeys(parse_label(label).column for label in labels))
