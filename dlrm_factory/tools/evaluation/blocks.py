"""Chunks of raw rows → blocks of encoded samples, a part of the data in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.features import Vocabularies
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.bad_rows import CellLedger
from dlrm_factory.tools.data.dataset import slices
from dlrm_factory.tools.data.dataset_builder import dataset_of
from dlrm_factory.tools.data.encoding import EncodedChunk, encode_chunk
from dlrm_factory.tools.data.split import SplitChunk

__all__ = ["Block", "Encoder"]

_SAMPLES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """B samples.

    Fields:
        labels: uint8 [B] of 0 and 1.
        true_logits: the ground truth's, float64 [B]; None for real clicks.
        column: the raw column that samples are cut by, B long; None without one.
    """

    batch: FeatureBatch
    labels: npt.NDArray[np.uint8]
    true_logits: npt.NDArray[np.float64] | None = None
    column: pa.Array | None = None


class Encoder:
    """Encodes rows as a model's training did.

    Fields:
        cells: counts the unreadable ones of the latest `blocks`.
    """

    def __init__(self, declaration: DLRMDeclaration, vocabularies: Vocabularies | None) -> None:
        self._declaration = declaration
        self.cells = CellLedger()
        self._vocabulary = None if vocabularies is None else VocabularyRows(declaration, vocabularies)

    def blocks(
        self,
        chunks: Iterable[tuple[SplitChunk, npt.NDArray[np.float64] | None]],
        *,
        all_rows: bool,
        column: str | None,
    ) -> Iterator[Block]:
        """Blocks of some thousand samples, held-out rows or all, in order; rows recorded as wrong are left out.

        ``chunks``: with the ground truth's logits, float64 [n], where there is one. DataError for a wrong value.
        """
        self.cells = CellLedger()
        for piece, truth in chunks:
            encoded = encode_chunk(piece.chunk, self._declaration, self._vocabulary, wrong=piece.wrong)
            kept = np.ones(len(encoded.labels), dtype=np.bool_) if all_rows else piece.masks.held_out.copy()
            if piece.wrong is not None:
                kept &= ~piece.wrong.mask
            self.cells.add(encoded.unreadable, kept)
            cells = None if column is None else piece.chunk.columns[column].filter(pa.array(kept))
            yield from self._pieces(encoded.take(kept), None if truth is None else truth[kept], cells)

    def _pieces(
        self, encoded: EncodedChunk, truth: npt.NDArray[np.float64] | None, cells: pa.Array | None
    ) -> Iterator[Block]:
        dataset = dataset_of([encoded], self._declaration)
        for rows in slices(np.arange(len(dataset)), _SAMPLES):
            first, count = int(rows[0]), len(rows)
            yield Block(
                batch=dataset.features(rows),
                labels=dataset.labels[rows].astype(np.uint8),
                true_logits=None if truth is None else truth[first : first + count],
                column=None if cells is None else cells.slice(first, count),
            )
