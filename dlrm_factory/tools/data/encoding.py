"""Chunks of raw rows → chunks of model-ready rows: dense features, labels, and the bags of `bags`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.declaration import DenseFeature, DLRMDeclaration
from dlrm_factory.config.label import Comparison, parse_label
from dlrm_factory.features import shown, transform_dense
from dlrm_factory.features.arrow import decoded, is_number, is_text
from dlrm_factory.features.arrow import numbers as float_numbers
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.bad_rows import ChunkCells, FeatureCells, Place, WrongRows
from dlrm_factory.tools.data.bags import Bags, LookUp, encode_bags
from dlrm_factory.tools.data.files import Chunk, weights_column

__all__ = ["MISSING_WORDS", "EncodedChunk", "encode_chunk", "encode_dense", "encode_label", "missing_words"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# How tables write "nothing here" in a column of numbers. An empty CSV cell has become null before.
MISSING_WORDS = ("nan", "na", "n/a", "null", "none")
_REMEDY = "; mend it, or declare the feature unreadable: missing, or the word among its missing_values"
_BOOLEANS = {"true": "1", "false": "0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChunk:
    """Some rows, model-ready.

    Fields:
        dense: float32 [n, dense features].
        labels: float32 [n] of 0 and 1.
        bags: one a sparse feature.
        unreadable: cells that count as missing, of all rows of the chunk.
    """

    dense: Float32
    labels: Float32
    bags: tuple[Bags, ...]
    unreadable: ChunkCells = field(default_factory=lambda: ChunkCells({}))

    def take(self, kept: npt.NDArray[np.bool_]) -> EncodedChunk:
        """Rows of the mask ``kept``, bool [n]."""
        bags = tuple(bags.take(kept) for bags in self.bags)
        return replace(self, dense=self.dense[kept], labels=self.labels[kept], bags=bags)


def encode_chunk(
    chunk: Chunk,
    declaration: DLRMDeclaration,
    vocabulary: VocabularyRows | None = None,
    *,
    wrong: WrongRows | None = None,
) -> EncodedChunk:
    """Raw rows → model-ready rows. DataError names file, row, column and value of the first mistake.

    Args:
        vocabulary: for features with ``ids: vocabulary``; without it all their ids get row 0.
        wrong: records rows that cannot be read, in place of the error; what is encoded in their place means
            nothing.
    """

    options = declaration.training
    columns = chunk.columns
    cells = {
        feature.name: FeatureCells(columns.num_rows)
        for feature in declaration.features
        if feature.unreadable == "missing"
    }

    def place(column: str) -> Place:
        return Place(
            source=chunk.source,
            first_row=chunk.first_row,
            column=column,
            wrong=wrong,
            cells=cells.get(column),
        )

    dense = np.empty((columns.num_rows, len(declaration.dense_features)), dtype=np.float32)
    for j, feature in enumerate(declaration.dense_features):
        dense[:, j] = encode_dense(columns[feature.name], feature, place(feature.name))
    bags = tuple(
        encode_bags(
            columns[sparse.name],
            sparse,
            declaration.table(sparse.table).num_embeddings,
            options.separator,
            place(sparse.name),
            look_up=_look_up(vocabulary, f) if sparse.ids == "vocabulary" else None,
            weights=columns[weights_column(sparse.name)] if sparse.weighted else None,
        )
        for f, sparse in enumerate(declaration.sparse_features)
    )
    label = parse_label(options.label)
    labels = encode_label(columns[label.column], place(label.column), label.comparison)
    return EncodedChunk(
        dense=transform_dense(dense, declaration.dense_features),
        labels=labels,
        bags=bags,
        unreadable=ChunkCells({name: found for name, found in cells.items() if found.mask.any()}),
    )


def _look_up(vocabulary: VocabularyRows | None, feature: int) -> LookUp:
    """Rows of the ids of the feature at place ``feature``."""
    if vocabulary is None:
        return lambda ids: np.zeros(len(ids), dtype=np.int64)
    return lambda ids: vocabulary.rows(ids, np.full(len(ids), feature))


def missing_words(feature: DenseFeature) -> tuple[str, ...]:
    """Words that mean missing in a text cell of ``feature``, in lower case, without white space around."""
    return (*MISSING_WORDS, *(word.strip().lower() for word in feature.missing_values or ()))


def encode_dense(column: pa.Array, feature: DenseFeature, place: Place) -> npt.NDArray[np.float32]:
    """Raw numbers: float32 [n], not yet transformed. Null, NaN and `missing_words` take the declared default.

    DataError for text, or for a number that float32 cannot hold; or ``place`` records the cell, which then takes
    the default, too.
    """
    remedy = _REMEDY if place.cells is None else ""
    numbers = _numbers(column, place, missing_words(feature), remedy)
    with np.errstate(over="ignore"):
        dense = np.where(np.isnan(numbers), feature.default, numbers).astype(np.float32)
    infinite = np.flatnonzero(~np.isfinite(dense))
    place.refuse(
        infinite,
        "not a finite number",
        lambda k: f"{shown(column[int(infinite[k])].as_py())} is not a finite float32 number{remedy}",
    )
    dense[infinite] = feature.default
    return dense


def encode_label(
    column: pa.Array, place: Place, comparison: Comparison | None = None
) -> npt.NDArray[np.float32]:
    """Clicks: float32 [n] of 0 and 1, from 0/1, true/false; or by a comparison, from any numbers.

    DataError for anything else.
    """
    raw = column
    if comparison is None and is_text(column.type):
        column = _replaced(pc.utf8_lower(_plain(column)), _BOOLEANS)
    numbers = _numbers(column, place)
    missing = np.isnan(numbers)
    wrong = missing if comparison else (numbers != 0) & (numbers != 1)
    needed = "a number" if comparison else "0 or 1 (or false or true)"

    def refuse(rows: Int64, reason: str) -> None:
        def problem(k: int) -> str:
            found = raw[int(rows[k])].as_py()
            return f"the label is {'nothing' if found is None else shown(found)}; it must be {needed}"

        place.refuse(rows, reason, problem)

    if place.wrong is not None:
        refuse(np.flatnonzero(missing), "no label")
    refuse(np.flatnonzero(wrong), f"label is not {needed}")
    clicks = comparison(numbers) if comparison else numbers == 1
    labels: npt.NDArray[np.float32] = (clicks & ~missing).astype(np.float32)
    return labels


def _numbers(
    column: pa.Array, place: Place, missing: tuple[str, ...] = MISSING_WORDS, remedy: str = ""
) -> Float64:
    """Float64 [n]; NaN where null, one of the words ``missing``, or recorded as wrong."""
    column = decoded(column)
    kind = column.type
    if is_text(kind):
        column = _parse(_plain(column), place, missing, remedy)
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (is_number(kind) or pa.types.is_null(kind)):
        raise place.column_error(f"holds {kind}; a dense feature or label needs numbers")
    return float_numbers(column, np.nan).astype(np.float64, copy=False)


def _parse(text: pa.Array, place: Place, missing: tuple[str, ...], remedy: str) -> pa.Array:
    try:
        numbers = text.cast(pa.float64())
    except pa.ArrowInvalid:
        pass  # some cell is not a plain number: look closer
    else:
        # "inf" is a number to Arrow, and may be a word that means missing.
        if not pc.any(pc.is_inf(numbers)).as_py():
            return numbers
    trimmed = pc.utf8_trim_whitespace(text)
    blank = pc.is_in(pc.utf8_lower(trimmed), pa.array(missing))
    trimmed = pc.if_else(blank, pa.scalar(None, pa.string()), trimmed)
    wanted = 1 if place.stops else None  # the first mistake is an error, or all are recorded
    wrong = np.fromiter(islice(_not_numbers(trimmed, 0), wanted), dtype=np.int64)
    place.refuse(
        wrong, "not a number", lambda k: f"{shown(trimmed[int(wrong[k])].as_py())} is not a number{remedy}"
    )
    mask = np.zeros(len(trimmed), dtype=np.bool_)
    mask[wrong] = True
    return pc.if_else(pa.array(mask), pa.scalar(None, pa.string()), trimmed).cast(pa.float64())


def _not_numbers(text: pa.Array, first: int) -> Iterator[int]:
    """Places of the cells that are no numbers, ascending. Halves what holds one, so few of them cost little."""
    try:
        text.cast(pa.float64())
    except pa.ArrowInvalid:
        if len(text) == 1:
            yield first
            return
        middle = len(text) // 2
        yield from _not_numbers(text.slice(0, middle), first)
        yield from _not_numbers(text.slice(middle), first + middle)


def _replaced(text: pa.Array, replacements: dict[str, str]) -> pa.Array:
    for old, new in replacements.items():
        text = pc.if_else(pc.equal(text, old), new, text)
    return text


def _plain(text: pa.Array) -> pa.Array:
    """Cast dictionary-encoded, large or view text to plain strings."""
    return text.cast(pa.string())
