"""Chunks of raw rows → chunks of model-ready rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.features import transform_dense
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.training.bags import Bags, encode_bags
from dlrm_factory.training.click_files import Chunk, weights_column
from dlrm_factory.training.ids import LookUp
from dlrm_factory.training.numbers import encode_dense, encode_label
from dlrm_factory.training.places import Place

__all__ = ["EncodedChunk", "encode_chunk", "limited"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChunk:
    """Some rows, model-ready.

    Fields:
        dense: float32 [n, dense features].
        labels: float32 [n] of 0 and 1.
        bags: one a sparse feature.
    """

    dense: Float32
    labels: Float32
    bags: tuple[Bags, ...]


def encode_chunk(
    chunk: Chunk, declaration: DLRMDeclaration, vocabulary: VocabularyRows | None = None
) -> EncodedChunk:
    """Raw rows → model-ready rows. DataError names file, row, column and value of the first mistake.

    ``vocabulary``: for features with ``ids: vocabulary``.
    """

    def place(column: str) -> Place:
        return Place(source=chunk.source, first_row=chunk.first_row, column=column)

    options = declaration.training
    columns = chunk.columns
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
    labels = encode_label(columns[options.label], place(options.label))
    return EncodedChunk(dense=transform_dense(dense, declaration.dense_features), labels=labels, bags=bags)


def _look_up(vocabulary: VocabularyRows | None, feature: int) -> LookUp:
    """Rows of the ids of the feature at place ``feature``."""
    assert vocabulary is not None
    return lambda ids: vocabulary.rows(ids, np.full(len(ids), feature))


def limited(chunks: Iterable[EncodedChunk], rows: int | None) -> Iterator[EncodedChunk]:
    """The first ``rows`` rows of ``chunks``; all of them for None."""
    left = rows
    for chunk in chunks:
        if left is None:
            yield chunk
            continue
        if left <= 0:
            return
        yield _head(chunk, left)
        left -= len(chunk.labels)


def _head(chunk: EncodedChunk, rows: int) -> EncodedChunk:
    if rows >= len(chunk.labels):
        return chunk
    bags = tuple(_head_bags(bags, rows) for bags in chunk.bags)
    return EncodedChunk(dense=chunk.dense[:rows], labels=chunk.labels[:rows], bags=bags)


def _head_bags(bags: Bags, rows: int) -> Bags:
    ids = int(bags.lengths[:rows].sum())
    weights = None if bags.weights is None else bags.weights[:ids]
    return Bags(values=bags.values[:ids], lengths=bags.lengths[:rows], weights=weights)
