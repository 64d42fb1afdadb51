"""Ids of features with ``ids: vocabulary`` → rows, and what becomes of an unknown id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.features.ids import hash_keys, mix_int64
from dlrm_factory.features.text_column import TextColumn
from dlrm_factory.features.vocabulary import Vocabularies

__all__ = ["DROPPED", "UNKNOWN", "VocabularyRows"]

Int64 = npt.NDArray[np.int64]

DROPPED, UNKNOWN = -1, -2  # in place of a row: to be left out of the bag, to be refused


class VocabularyRows:
    """The rows of all vocabulary features at once."""

    def __init__(self, declaration: DLRMDeclaration, vocabularies: Vocabularies | None) -> None:
        """WeightsError if the vocabularies are missing or not the declared ones."""
        names = declaration.vocabulary_tables
        if vocabularies is None:
            raise WeightsError(
                f'table "{names[0]}" needs the vocabulary of its ids; take it from the checkpoint or the archive '
                "that `dlrm train` and `dlrm archive` made"
            )
        vocabularies.check(declaration)
        self._vocabularies = vocabularies
        features = declaration.sparse_features
        self._tables = np.array([names.index(f.table) if f.table in names else -1 for f in features])
        self._spare = np.array([f.out_of_vocabulary_rows for f in features])
        self._first_spare = np.array([declaration.table(f.table).num_embeddings for f in features])
        self._first_spare -= self._spare
        # Int64 [F]: rows from there on are shared by ids that the vocabulary lacks.
        self.known_rows = self._first_spare
        self._otherwise = np.array(
            [DROPPED if f.out_of_vocabulary == "drop" else UNKNOWN for f in features], dtype=np.int64
        )

    def rows(self, ids: Sequence[int | str] | Int64, features: Int64) -> Int64:
        """Int64 [len(ids)]: a row, `DROPPED` or `UNKNOWN`. ``features``: the place of each id's feature.

        OverflowError for an integer outside int64, UnicodeEncodeError for half a surrogate pair.
        """
        texts = None
        if isinstance(ids, np.ndarray):
            hashes = mix_int64(ids)
        else:
            hashes = hash_keys(ids)
            texts = TextColumn.of(ids) if str in set(map(type, ids)) else None
        rows = self._vocabularies.find(hashes, texts, self._tables[features])
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            which = features[missing]
            spare = self._spare[which]
            share = (hashes[missing] % np.maximum(spare, 1).astype(np.uint64)).astype(np.int64)
            rows[missing] = np.where(spare > 0, self._first_spare[which] + share, self._otherwise[which])
        return rows
