"""How often each id of a table is seen, and its vocabulary: the ids in the order of their rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.features import canonical_int

__all__ = ["IdCounts", "Ordered"]

Int64 = npt.NDArray[np.int64]

# Text that may be an int64: such text is the integer, see `dlrm_factory.features.ids`.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_PERHAPS_INTEGER = r"^-?[1-9][0-9]{18}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """A table's vocabulary.

    Fields:
        ids: the most frequent first; among equally frequent ones integers, ascending, then text by its UTF-8.
        distinct: how many ids were seen.
        left_out: how many occurrences the ids without a row have.
    """

    ids: list[int | str] | Int64
    distinct: int
    left_out: int


class IdCounts:
    """Counts ids, chunk by chunk. Takes memory for each distinct id, not for each occurrence."""

    def __init__(self) -> None:
        self._integers = _Tally(pa.int64())
        self._texts = _Tally(pa.large_string())

    def add(self, ids: pa.Array | Int64) -> None:
        """Count int64 or text ids, without nulls. Text that is an integer counts as that integer."""
        if isinstance(ids, np.ndarray):
            self._integers.add(_counted(pa.array(ids)))
            return
        if pa.types.is_dictionary(ids.type):
            ids = ids.dictionary_decode()
        counted = _counted(ids.cast(pa.large_string()))
        texts = counted["id"].combine_chunks()
        plain = pc.match_substring_regex(texts, _INTEGER)
        perhaps = pc.match_substring_regex(texts, _PERHAPS_INTEGER)
        self._integers.add(_as_integers(counted.filter(plain)))
        exotic = counted.filter(perhaps).to_pylist()
        numbers = [(canonical_int(row["id"]), row["count"]) for row in exotic]
        fitting = [(number, count) for number, count in numbers if number is not None]
        self._integers.add(_table([n for n, _ in fitting], [c for _, c in fitting], pa.int64()))
        large = [row for row, (number, _) in zip(exotic, numbers, strict=True) if number is None]
        self._texts.add(_table([row["id"] for row in large], [row["count"] for row in large], texts.type))
        self._texts.add(counted.filter(pc.invert(pc.or_(plain, perhaps))))

    def ordered(self, *, most: int, min_count: int) -> Ordered:
        """The vocabulary: at most ``most`` ids, each seen at least ``min_count`` times."""
        integers, texts = (tally.sorted() for tally in (self._integers, self._texts))
        counts = np.concatenate([integers["count"].to_numpy(), texts["count"].to_numpy()])
        # Both parts are sorted by value, and a stable sort keeps that order among equal counts.
        order = np.argsort(-counts, kind="stable")
        kept = order[: min(most, int((counts >= min_count).sum()))]
        left_out = int(counts.sum() - counts[kept].sum())
        values = integers["id"].to_numpy()
        if not len(texts):
            return Ordered(ids=values[kept], distinct=len(counts), left_out=left_out)
        everything = pa.chunked_array([texts["id"].combine_chunks()]).take(
            pa.array(np.maximum(kept - len(values), 0))
        )
        ids: list[int | str] = [
            int(values[place]) if place < len(values) else text
            for place, text in zip(kept.tolist(), everything.to_pylist(), strict=True)
        ]
        return Ordered(ids=ids, distinct=len(counts), left_out=left_out)


class _Tally:
    """Counts of values of one Arrow type."""

    def __init__(self, kind: pa.DataType) -> None:
        self._sums = _table([], [], kind)
        self._parts: list[pa.Table] = []

    def add(self, counted: pa.Table) -> None:
        self._parts.append(counted)
        if sum(map(len, self._parts)) > max(len(self._sums), 1 << 20):
            self._merge()

    def sorted(self) -> pa.Table:
        """Columns ``id`` and ``count``, ascending by id; text by its UTF-8."""
        self._merge()
        return self._sums.sort_by("id")

    def _merge(self) -> None:
        together = pa.concat_tables([self._sums, *self._parts])
        sums = together.group_by("id", use_threads=False).aggregate([("count", "sum")])
        self._sums = sums.select(["id", "count_sum"]).rename_columns(["id", "count"])
        self._parts = []


def _counted(ids: pa.Array) -> pa.Table:
    counted = ids.value_counts()
    return pa.table({"id": counted.field("values"), "count": counted.field("counts")})


def _as_integers(counted: pa.Table) -> pa.Table:
    return counted.set_column(0, "id", counted["id"].cast(pa.int64()))


def _table(ids: list[int] | list[str], counts: list[int], kind: pa.DataType) -> pa.Table:
    return pa.table({"id": pa.array(ids, kind), "count": pa.array(counts, pa.int64())})
