"""Chunks of raw rows → chunks of model-ready rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.label import parse_label
from dlrm_factory.features import transform_dense
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.bad_rows import WrongRows
from dlrm_factory.tools.data.bags import Bags, encode_bags
from dlrm_factory.tools.data.click_files import Chunk, weights_column
from dlrm_factory.tools.data.ids import LookUp
from dlrm_factory.tools.data.numbers import encode_dense, encode_label
from dlrm_factory.tools.data.places import Place
from dlrm_factory.tools.data.unreadable_cells import ChunkCells, FeatureCells

__all__ = ["EncodedChunk", "encode_chunk"]

Float32 = npt.NDArray[np.float32]


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
        """The rows that ``kept``, bool [n], says."""
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
        wrong: takes down rows that cannot be read, in place of the error; what is encoded in their place means
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
