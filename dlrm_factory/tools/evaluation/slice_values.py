"""A raw column → which samples belong to which slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.features.arrow import is_number, is_text
from dlrm_factory.tools.data.bags import flatten_values
from dlrm_factory.tools.metrics.metrics import quantile_bins

__all__ = ["MAX_SLICES", "MISSING", "NUMBER_BINS", "OTHER", "Slice", "SliceKind", "SliceValues"]

MAX_SLICES = 20
NUMBER_BINS = 10
MISSING, OTHER = "(missing)", "(other)"

SliceKind = Literal["value", "bin", "other", "missing"]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Samples that are alike in the column: ``rows``, int64, are their places in the order of adding.

    ``kind``: one value, a bin of numbers, all values that are not among the most frequent, or no value.
    """

    name: str
    rows: Int64
    kind: SliceKind = "value"


class SliceValues:
    """Collects a column chunk by chunk, then cuts it into slices.

    Up to MAX_SLICES different values are a slice each. Of more, numbers are cut into NUMBER_BINS quantile bins; of
    anything else the MAX_SLICES most frequent values are a slice each, and the others one together. A sample with
    several ids is in the slice of each of them; one without any is "(missing)".

    Takes 12 to 16 bytes a value, and memory for each different text.
    """

    def __init__(
        self, *, is_id: bool, separator: str | None = None, missing_words: Sequence[str] = ()
    ) -> None:
        """
        Args:
            is_id: numbers are names, never binned.
            separator: splits text into several ids.
            missing_words: text that counts as missing, in lower case, without white space around.
        """
        self._is_id = is_id
        self._separator = separator
        self._missing_words = pa.array(missing_words, pa.string())
        self._samples = 0
        self._missing: list[Int64] = []
        self._numbers: list[tuple[Int64, Float64]] = []  # rows and values
        self._codes: dict[str, int] = {}
        self._coded: list[tuple[Int64, npt.NDArray[np.int32]]] = []  # rows and codes

    def add(self, column: pa.Array) -> None:
        """One value, or one list of ids, a sample."""
        if len(self._missing_words) and is_text(column.type):
            text = column.cast(pa.string())
            words = pc.utf8_lower(pc.utf8_trim_whitespace(text))
            column = pc.if_else(pc.is_in(words, self._missing_words), pa.scalar(None, pa.string()), text)
        values, lengths = flatten_values(column, self._separator)[:2]
        rows = np.arange(self._samples, self._samples + len(column))
        self._samples += len(column)
        self._missing.append(rows[lengths == 0])
        rows = np.repeat(rows, lengths)
        if is_number(values.type) and not self._is_id:
            numbers = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            self._numbers.append((rows, numbers))
        else:
            self._coded.append((rows, self._code(values)))

    def slices(self) -> list[Slice]:
        """Numbers in their order, other values by frequency; then "(other)" and "(missing)", if there are any."""
        numbers = None if self._is_id else self._all_numbers()
        found = self._by_frequency() if numbers is None else _by_number(*numbers)
        missing = np.concatenate([np.empty(0, dtype=np.int64), *self._missing])
        return [*found, Slice(name=MISSING, rows=missing, kind="missing")] if len(missing) else found

    def _code(self, values: pa.Array) -> npt.NDArray[np.int32]:
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.date32(), safe=False)  # a slice a day
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        codes = [self._code_of(value) for value in encoded.dictionary.to_pylist()]
        own: npt.NDArray[np.int32] = np.array(codes, dtype=np.int32)[encoded.indices.to_numpy()]
        return own

    def _code_of(self, value: Any) -> int:
        name = _shown(value) if isinstance(value, float) else str(value)
        return self._codes.setdefault(name, len(self._codes))

    def _all_numbers(self) -> tuple[Int64, Float64] | None:
        """Rows and values if every value is a number, be it as text; else None."""
        try:
            of_code = np.array([float(name) for name in self._codes], dtype=np.float64)
        except ValueError:
            return None
        parts = [*self._numbers, *((rows, of_code[codes]) for rows, codes in self._coded)]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *(rows for rows, _ in parts)])
        values = np.concatenate([np.empty(0), *(values for _, values in parts)])
        return rows, values

    def _by_frequency(self) -> list[Slice]:
        for rows, values in self._numbers:  # one file has numbers, another text: numbers are names then
            distinct, places = np.unique(values, return_inverse=True)
            own = np.array([self._code_of(float(value)) for value in distinct], dtype=np.int32)
            self._coded.append((rows, own[places]))
        self._numbers = []
        rows = np.concatenate([np.empty(0, dtype=np.int64), *(rows for rows, _ in self._coded)])
        codes = np.concatenate([np.empty(0, dtype=np.int32), *(codes for _, codes in self._coded)])
        names, counts = list(self._codes), np.bincount(codes, minlength=len(self._codes))
        frequent = sorted(range(len(names)), key=lambda code: (-int(counts[code]), names[code]))[:MAX_SLICES]
        groups = _grouped(rows, codes, len(names))
        found = [Slice(name=names[code], rows=groups[code]) for code in frequent]
        # A sample may hold several rare ids, and is in the rest once.
        rest = np.unique(rows[~np.isin(codes, frequent)])
        return [*found, Slice(name=OTHER, rows=rest, kind="other")] if len(rest) else found


def _by_number(rows: Int64, values: Float64) -> list[Slice]:
    distinct = np.unique(values)
    kind: SliceKind = "value" if len(distinct) <= MAX_SLICES else "bin"
    if kind == "value":
        bins, names = np.searchsorted(distinct, values), [_shown(float(value)) for value in distinct]
    else:
        bins = quantile_bins(values, NUMBER_BINS)
        count = int(bins.max()) + 1
        names = [
            f"{_shown(values[bins == k].min())} to {_shown(values[bins == k].max())}" for k in range(count)
        ]
    groups = _grouped(rows, bins, len(names))
    return [Slice(name=name, rows=group, kind=kind) for name, group in zip(names, groups, strict=True)]


def _grouped(rows: Int64, codes: npt.NDArray[np.integer], count: int) -> list[Int64]:
    """``rows`` of each code 0 … count - 1; a row comes once in a group, however often it has the code."""
    if not count:
        return []
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(1, count))
    return [np.unique(group) for group in np.split(rows[order], ends)]


def _shown(number: float) -> str:
    number = float(number)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else f"{number:.6g}"
