"""Statistics of the training split that features need: vocabularies of ids, mean and std of dense values."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.features import Vocabularies, build_vocabularies, canonical_int, transform_dense
from dlrm_factory.tools.data.bad_rows import FeatureCells, Place
from dlrm_factory.tools.data.bags import raw_ids
from dlrm_factory.tools.data.encoding import encode_chunk, encode_dense
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.data.split import SplitChunk

__all__ = ["FittedFeatures", "IdCounts", "Moments", "Ordered", "fit_features", "needs_fitting"]

Int64 = npt.NDArray[np.int64]

# Text that may be an int64: such text is the integer, see `dlrm_factory.features.ids`.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_PERHAPS_INTEGER = r"^-?[1-9][0-9]{18}$"

logger = logging.getLogger(__name__)
Training = npt.NDArray[np.bool_]


class Moments:
    """Chan's parallel form of Welford's sums: as exact as two passes over all values."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Take float32 [n]; sums are float64."""
        if not len(values):
            return
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        together = self._count + len(wide)
        distance = mean - self._mean
        self._squares += float(((wide - mean) ** 2).sum())
        self._squares += distance * distance * self._count * len(wide) / together
        self._mean += distance * len(wide) / together
        self._count = together

    @property
    def mean(self) -> float:
        """Mean of all values; 0 without any."""
        return self._mean

    @property
    def std(self) -> float:
        """Standard deviation of the values, not of a sample; 1 if they are all alike, so that they become 0."""
        std = math.sqrt(self._squares / self._count) if self._count else 0.0
        return std if std > 0 else 1.0


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

    def ordered(self, *, max_ids: int, min_count: int) -> Ordered:
        """The vocabulary: at most ``max_ids`` ids, each seen at least ``min_count`` times."""
        integers, texts = (tally.sorted() for tally in (self._integers, self._texts))
        counts = np.concatenate([integers["count"].to_numpy(), texts["count"].to_numpy()])
        # Both parts are sorted by value, and a stable sort keeps that order among equal counts.
        order = np.argsort(-counts, kind="stable")
        kept = order[: min(max_ids, int((counts >= min_count).sum()))]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedFeatures:
    """The declaration with every mean and std, and the vocabularies of its tables; None if it has none."""

    declaration: DLRMDeclaration
    vocabularies: Vocabularies | None


def needs_fitting(declaration: DLRMDeclaration) -> bool:
    """Test whether something of the declaration has to be found in the training split."""
    return bool(declaration.vocabulary_tables) or any(
        feature.is_standardized and feature.mean is None for feature in declaration.dense_features
    )


def fit_features(
    declaration: DLRMDeclaration, chunks: Iterable[SplitChunk], *, rows: int | None, observe: Observer
) -> FittedFeatures:
    """One pass over ``chunks``, of ``rows`` rows if that is known. Held-out rows are passed over, and bad ones.

    DataError for a value that is not of its feature.
    """
    if not needs_fitting(declaration):
        return FittedFeatures(declaration=declaration, vocabularies=None)
    moments = {f.name: Moments() for f in declaration.dense_features if f.is_standardized and f.mean is None}
    counts = {table: IdCounts() for table in declaration.vocabulary_tables}
    may_miss = any(feature.unreadable == "missing" for feature in declaration.features)
    done = 0
    for piece in chunks:
        training = ~piece.masks.held_out
        cells: Mapping[str, FeatureCells] = {}
        if piece.wrong is not None or may_miss:
            # A row that is bad in any column is left out whole, so all columns are looked at.
            cells = encode_chunk(piece.chunk, declaration, wrong=piece.wrong).unreadable.features
        if piece.wrong is not None:
            training &= ~piece.wrong.mask
        _add_numbers(moments, piece, declaration, training, cells)
        _add_ids(counts, piece, declaration, training, cells)
        done += len(training)
        observe(Progress(stage="features", done=done, total=rows))
    return FittedFeatures(
        declaration=_with_statistics(declaration, moments), vocabularies=_vocabularies(declaration, counts)
    )


def _add_numbers(
    moments: dict[str, Moments],
    piece: SplitChunk,
    declaration: DLRMDeclaration,
    training: Training,
    cells: Mapping[str, FeatureCells],
) -> None:
    for feature in declaration.dense_features:
        if feature.name in moments:
            column = piece.chunk.columns[feature.name]
            raw = encode_dense(column, feature, _place(piece, feature.name, cells))
            dense = transform_dense(raw[:, None], [feature], until_standardized=True)
            moments[feature.name].add(dense[training, 0])


def _add_ids(
    counts: dict[str, IdCounts],
    piece: SplitChunk,
    declaration: DLRMDeclaration,
    training: Training,
    cells: Mapping[str, FeatureCells],
) -> None:
    for feature in declaration.sparse_features:
        if feature.table in counts:
            column, place = piece.chunk.columns[feature.name], _place(piece, feature.name, cells)
            ids, lengths = raw_ids(column, feature, declaration.training.separator, place)
            good = training if place.cells is None else training & ~place.cells.mask
            mask = np.repeat(good, lengths)
            counts[feature.table].add(ids[mask] if isinstance(ids, np.ndarray) else ids.filter(mask))


def _place(piece: SplitChunk, column: str, cells: Mapping[str, FeatureCells]) -> Place:
    """Place of a column. ``cells``: recorded before, so recording them again changes nothing."""
    chunk = piece.chunk
    return Place(
        source=chunk.source,
        first_row=chunk.first_row,
        column=column,
        wrong=piece.wrong,
        cells=cells.get(column),
    )


def _with_statistics(declaration: DLRMDeclaration, moments: dict[str, Moments]) -> DLRMDeclaration:
    features = [
        msgspec.structs.replace(feature, mean=moments[feature.name].mean, std=moments[feature.name].std)
        if feature.name in moments
        else feature
        for feature in declaration.dense_features
    ]
    return msgspec.structs.replace(declaration, dense_features=features)


def _vocabularies(declaration: DLRMDeclaration, counts: dict[str, IdCounts]) -> Vocabularies | None:
    if not counts:
        return None
    ordered = {
        table: ids.ordered(
            max_ids=declaration.vocabulary_room(table), min_count=declaration.table(table).min_count
        )
        for table, ids in counts.items()
    }
    for table, found in ordered.items():
        _log(declaration, table, found)
    return build_vocabularies({table: found.ids for table, found in ordered.items()})


def _log(declaration: DLRMDeclaration, table: str, found: Ordered) -> None:
    strict = [
        f.name for f in declaration.sparse_features if f.table == table and f.out_of_vocabulary == "error"
    ]
    logger.log(
        logging.WARNING if strict and found.left_out else logging.INFO,
        'table "%s": %d of %d ids have a row of their own; the others come %d times in the training part%s',
        table,
        len(found.ids),
        found.distinct,
        found.left_out,
        f", and are left out of the bags of {', '.join(strict)}, which refuse them in requests"
        if strict and found.left_out
        else "",
    )
