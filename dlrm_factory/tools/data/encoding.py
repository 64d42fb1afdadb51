"""Chunks of raw rows → chunks of model-ready rows: dense features, labels, and the bags of `bags`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_factory.config.declaration import DenseFeature, DLRMDeclaration
from dlrm_factory.features import shown, transform_dense
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.bad_rows import ChunkCells, FeatureCells, Place, WrongRows
from dlrm_factory.tools.data.bags import Bags, LookUp, encode_bags
from dlrm_factory.tools.data.files import Chunk, weights_column
from dlrm_factory.tools.data.labels import encode_labels
from dlrm_factory.tools.data.numbers import MISSING_WORDS, encode_numbers

__all__ = ["EncodedChunk", "encode_chunk", "encode_dense", "missing_words"]

Float32 = npt.NDArray[np.float32]

_REMEDY = "; mend it, or declare the feature unreadable: missing, or the word among its missing_values"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChunk:
    """Some rows, model-ready.

    Fields:
        dense: float32 [n, dense features].
        labels: float32 [n, probabilities], see `encode_labels`.
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
    labels = encode_labels(columns, declaration, place)
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
    numbers = encode_numbers(column, place, missing_words(feature), remedy)
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
