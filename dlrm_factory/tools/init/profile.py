"""Profile of a column: kinds of values, distinct ones, numbers, examples."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.features import hash_keys
from dlrm_factory.features.arrow import is_list, is_number, is_text
from dlrm_factory.features.ids import mix_int64
from dlrm_factory.tools.data.numbers import MISSING_WORDS

__all__ = [
    "ColumnProfile",
    "Distinct",
]

UInt64 = npt.NDArray[np.uint64]

MAX_EXACT = 1 << 20
_BITS = 14  # 16,384 registers: a standard error of 1.04 / sqrt(16384) = 0.8%

Float64 = npt.NDArray[np.float64]
_MAX_KEPT = 1 << 18
Int64 = npt.NDArray[np.int64]
_NUMBER = r"^\s*-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$"
_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"  # as an id is written: no leading zero, no decimal point
_ZEROS = r"^-?0[0-9]"
_ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ Tt].*)?$"
# How tables write "nothing here" beside the words that always mean it.
_NOTHING = (
    "?",
    "-",
    "--",
    ".",
    "n.a.",
    "#n/a",
    "<na>",
    "\\n",
    "nil",
    "(null)",
    "unknown",
    "missing",
    "undefined",
)
_MAX_WORDS = 1000
_BOOLEAN = ("true", "false")
_EXAMPLES = 5


class Distinct:
    """Counts by 64-bit hashes: exactly up to 1,048,576 of them, then by HyperLogLog within some percent.

    Flajolet, Fusy, Gandouet, Meunier: HyperLogLog, AofA 2007. With hashes of 64 bits its correction for large counts
    is not needed, and small ones are counted exactly.
    """

    def __init__(self) -> None:
        self._seen: UInt64 | None = np.empty(0, dtype=np.uint64)
        self._registers = np.zeros(1 << _BITS, dtype=np.uint8)

    def add(self, hashes: UInt64) -> None:
        """Take uint64 hashes whose bits are all as good as random."""
        if self._seen is not None:
            self._seen = np.union1d(self._seen, hashes)
            if len(self._seen) <= MAX_EXACT:
                return
            hashes, self._seen = self._seen, None
        place = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
        np.maximum.at(self._registers, place, _first_one(hashes << np.uint64(_BITS)))

    @property
    def exact(self) -> bool:
        """True if `count` is no estimate."""
        return self._seen is not None

    @property
    def count(self) -> int:
        """Different values so far."""
        if self._seen is not None:
            return len(self._seen)
        size = len(self._registers)
        alpha = 0.7213 / (1 + 1.079 / size)
        return round(alpha * size * size / float(np.exp2(-self._registers.astype(np.float64)).sum()))


def _first_one(bits: UInt64) -> npt.NDArray[np.uint8]:
    """Place of the first 1 from the left, from 1; of no 1 at all one more than the bits there are."""
    # A float's exponent is where its first 1 is; the upper 53 bits fit one exactly.
    _, exponents = np.frexp((bits >> np.uint64(11)).astype(np.float64))
    places = 53 - exponents + 1
    return np.where(bits >> np.uint64(11) == 0, 64 - _BITS + 1, places).astype(np.uint8)


class NumberSample:
    """Least and greatest of all numbers; quantiles of every k-th one, where k grows with the data."""

    def __init__(self) -> None:
        self.least, self.most = math.inf, -math.inf
        self.fractional = False
        self._kept: Float64 = np.empty(0)
        self._step, self._next = 1, 0

    def add(self, numbers: Float64) -> None:
        """Take float64 [n]; infinite ones are passed over."""
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return
        self.least, self.most = min(self.least, float(numbers.min())), max(self.most, float(numbers.max()))
        self.fractional = self.fractional or bool((numbers != np.floor(numbers)).any())
        self._kept = np.append(self._kept, numbers[self._next :: self._step])
        self._next = (self._next - len(numbers)) % self._step
        while len(self._kept) > _MAX_KEPT:
            self._kept = self._kept[::2]
            self._step *= 2

    def quantile(self, share: float) -> float:
        """A number of the sample; 0 without any."""
        if not len(self._kept):
            return 0.0
        return float(np.quantile(self._kept, share, method="lower"))

    @property
    def long_tailed(self) -> bool:
        """Mostly small and none much below 0, with some at least eight times the median: counts, prices."""
        return self.least > -10 and self.quantile(0.99) >= 8 * max(self.quantile(0.5), 1)


@dataclass(slots=True)
class ColumnProfile:
    """Counts of one column's cells.

    Fields:
        name: of the column.
        separator: between the ids of a text cell.
        rows, missing: cells, and those that are null, empty or NaN.
        numbers, whole: cells that are numbers, and those written as integers are.
        zeros: text cells that are numbers with a zero in front, such as 00501.
        blanks: text such as NA or ?, which is missing in a column of numbers.
        words: how often each text that is no number comes; no longer complete with 1,000 of them.
        booleans: cells that are true or false.
        times: cells that are dates or timestamps, or text that begins like one.
        lists: cells that are lists.
        separated: text cells with the separator within.
        longest: the most ids in a cell that is a list or separated.
        other: a type that no feature can be of; None if there is none.
        distinct: of whole cells.
        parts: of the ids within lists and separated cells.
        sample: of the numbers.
        examples: the first different cells, as text.
    """

    name: str
    separator: str = "|"
    rows: int = 0
    missing: int = 0
    numbers: int = 0
    whole: int = 0
    zeros: int = 0
    blanks: int = 0
    words: Counter[str] = field(default_factory=Counter)
    booleans: int = 0
    times: int = 0
    lists: int = 0
    separated: int = 0
    longest: int = 0
    other: str | None = None
    distinct: Distinct = field(default_factory=Distinct)
    parts: Distinct = field(default_factory=Distinct)
    sample: NumberSample = field(default_factory=NumberSample)
    examples: list[str] = field(default_factory=list)

    @property
    def present(self) -> int:
        """Cells that hold something."""
        return self.rows - self.missing

    def add(self, column: pa.Array) -> None:
        """Take the column's cells of one chunk."""
        self.rows += len(column)
        kind = column.type
        if is_text(kind):
            self._add_text(column.cast(pa.string()))
        elif pa.types.is_boolean(kind):
            self._add_plain(column)
            self.booleans += len(column) - column.null_count
        elif is_number(kind):
            self._add_numbers(column)
        elif is_list(kind):
            self._add_lists(column)
        elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            self._add_plain(column)
            self.times += len(column) - column.null_count
        elif pa.types.is_null(kind):
            self.missing += len(column)
        else:
            self.missing += column.null_count
            self.other = str(kind)

    def _add_plain(self, column: pa.Array) -> None:
        """Cells of a type that says all."""
        self.missing += column.null_count
        values = column.drop_null().unique()
        self._show(values)
        if pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("s"))
        self.distinct.add(mix_int64(values.cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)))

    def _add_numbers(self, column: pa.Array) -> None:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        self.missing += column.null_count
        present = column.drop_null()
        self.numbers += len(present)
        values = present.unique()
        self._show(values)
        if pa.types.is_integer(column.type):
            self.whole += len(present)
            self.distinct.add(mix_int64(_int64(values)))
        else:
            bits = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).view(np.int64)
            self.distinct.add(mix_int64(bits))
        self.sample.add(present.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))

    def _add_text(self, column: pa.Array) -> None:
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        self.missing += column.null_count
        counted = column.drop_null().value_counts()
        texts, counts = counted.field("values"), counted.field("counts").to_numpy()
        self._show(texts)
        self.distinct.add(hash_keys(texts.to_pylist()))
        lower = pc.utf8_lower(texts)
        numeric = _matches(texts, _NUMBER)
        self.numbers += int(counts[numeric].sum())
        self.whole += int(counts[_matches(texts, _WHOLE)].sum())
        self.zeros += int(counts[_matches(texts, _ZEROS)].sum())
        blank = _among(pc.utf8_trim_whitespace(lower), (*MISSING_WORDS, *_NOTHING))
        self.blanks += int(counts[blank].sum())
        self._add_words(texts, counts, np.flatnonzero(~numeric))
        self.booleans += int(counts[_among(lower, _BOOLEAN)].sum())
        self.times += int(counts[_matches(texts, _ISO)].sum())
        self._add_separated(texts, counts)
        numbers = pc.utf8_trim_whitespace(texts.filter(pa.array(numeric))).cast(pa.float64())
        self.sample.add(np.repeat(numbers.to_numpy(zero_copy_only=False), counts[numeric]))

    def _add_words(self, texts: pa.Array, counts: Int64, places: Int64) -> None:
        # A column with so many is none of numbers.
        for place in places[: max(_MAX_WORDS - len(self.words), 0)].tolist():
            self.words[texts[place].as_py()] += int(counts[place])

    def missing_words(self) -> Counter[str]:
        """Text cells that seem to mean missing in a column of numbers: how often each comes, as it was first seen.

        Known words such as NA, ? and unknown, and those without a digit that come again. Case does not matter.
        """
        found: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for text, count in self.words.items():
            word = text.strip()
            counts[found.setdefault(word.lower(), word)] += count
        known = {*MISSING_WORDS, *_NOTHING}
        return Counter(
            {
                word: count
                for word, count in counts.items()
                if word.lower() in known or (count > 1 and not any(map(str.isdigit, word)))
            }
        )

    def _add_separated(self, texts: pa.Array, counts: Int64) -> None:
        pieces = pc.split_pattern(texts, self.separator)
        lengths = pc.list_value_length(pieces).to_numpy(zero_copy_only=False)
        self.separated += int(counts[lengths > 1].sum())
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        parts = pc.list_flatten(pieces).unique()
        self.parts.add(hash_keys(parts.filter(pc.not_equal(parts, "")).to_pylist()))

    def _add_lists(self, column: pa.Array) -> None:
        self.missing += column.null_count
        self.lists += len(column) - column.null_count
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        parts = pc.list_flatten(column).drop_null()
        if is_text(parts.type):
            parts = parts.cast(pa.string()).unique()
            self.parts.add(hash_keys(parts.to_pylist()))
            self.whole += len(parts) and int(_matches(parts, _WHOLE).sum())
        elif pa.types.is_integer(parts.type):
            numbers = _int64(parts.unique())
            self.parts.add(mix_int64(numbers))
            self.sample.add(numbers.astype(np.float64))
            self.whole += len(parts)
        else:
            self.other = str(column.type)
        self.numbers += len(parts)
        self._show(parts.unique() if len(parts) else parts)

    def _show(self, values: pa.Array) -> None:
        for value in values.slice(0, 4 * _EXAMPLES).to_pylist():
            text = str(value)
            if len(self.examples) < _EXAMPLES and text not in self.examples:
                self.examples.append(text)


def _int64(values: pa.Array) -> Int64:
    # Unsigned numbers above 2**63 wrap around: only their hashes are wanted.
    return values.cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)


def _matches(texts: pa.Array, pattern: str) -> npt.NDArray[np.bool_]:
    return pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False).astype(np.bool_)


def _among(texts: pa.Array, words: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    return pc.is_in(texts, pa.array(words)).to_numpy(zero_copy_only=False).astype(np.bool_)
