"""Raw values by column → a checked `FeatureBatch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.batch.substitutions import Substitutions
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features.bags import RawBags, flatten_bags, length_limits, length_mistakes
from dlrm_factory.features.dense import DenseEncoder
from dlrm_factory.features.feature_error import FeatureError
from dlrm_factory.features.rows import RowEncoder
from dlrm_factory.features.trimming import trim_bags, truncated_bags
from dlrm_factory.features.vocabulary import Vocabularies
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.features.weights import encode_weights, weight_mistakes

__all__ = ["FeatureEncoder"]


class FeatureEncoder:
    """Encodes samples for one declaration. Holds no state of a request, so threads may share it."""

    def __init__(self, declaration: DLRMDeclaration, vocabularies: Vocabularies | None = None) -> None:
        """``vocabularies``: of the tables that have one, as training found them.

        WeightsError if they, or the mean and std of a standardised feature, are missing.
        """
        sizes = {table.name: table.num_embeddings for table in declaration.tables}
        self.declaration = declaration
        self.names = (*declaration.dense_names, *declaration.sparse_names)
        self.known = frozenset(self.names)
        self._sparse = tuple(declaration.sparse_features)
        self._dense = DenseEncoder(declaration.dense_features)
        self._max_lengths = length_limits(self._sparse)
        self._trims = any(
            f.out_of_vocabulary == "drop" or f.over_max_length == "truncate" for f in self._sparse
        )
        vocabulary = VocabularyRows(declaration, vocabularies) if declaration.vocabulary_tables else None
        self._rows = RowEncoder(self._sparse, [sizes[feature.table] for feature in self._sparse], vocabulary)

    def encode(self, columns: Mapping[str, Sequence[Any]], size: int) -> FeatureBatch:
        """``size`` samples. FeatureError names the first wrong value.

        ``columns`` holds ``size`` raw values a feature, all of them known features. An absent column or a
        null is the default: a dense feature's own, and an empty bag for a sparse feature.
        """
        dense = self._dense.encode(columns, size)
        return self._batch(
            dense, flatten_bags(columns, self._sparse, size), self._dense.missing(columns, size)
        )

    def encode_jagged(
        self,
        dense: Mapping[str, Sequence[Any]],
        lengths: npt.NDArray[np.int32],
        ids: Sequence[Any],
    ) -> FeatureBatch:
        """Samples whose bags are flat already. FeatureError names the first wrong value.

        Args:
            dense: columns of B raw numbers.
            lengths: int32 [F, B], none negative.
            ids: raw, feature-major; as many as ``lengths`` says.
        """
        size = lengths.shape[1]
        return self._batch(
            self._dense.encode(dense, size), _flat(lengths, ids), self._dense.missing(dense, size)
        )

    def encode_arrays(
        self,
        dense: npt.NDArray[np.float64],
        lengths: npt.NDArray[np.int32],
        ids: npt.NDArray[np.int64],
        missing: npt.NDArray[np.int64] | None = None,
    ) -> FeatureBatch:
        """Samples that are arrays of numbers already, defaults in place of missing ones. FeatureError as above.

        Args:
            dense: float64 [number of dense features, B].
            lengths: int32 [F, B], none negative.
            ids: int64 [lengths.sum()], feature-major; the batch may keep it.
            missing: int64 [number of dense features], samples that lacked each; None if none did.
        """
        bags = RawBags(ids=ids, lengths=lengths, kinds={int})
        return self._batch(self._dense.encode_numbers(dense), bags, missing)

    def encode_single_valued(
        self,
        dense: npt.NDArray[np.float64],
        ids: npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_] | None = None,
        missing: npt.NDArray[np.int64] | None = None,
    ) -> FeatureBatch:
        """Samples with at most one id a bag. ``missing`` and FeatureError as above.

        Args:
            dense: float64 [number of dense features, B].
            ids: int64 [F, B], 0 for an empty bag; the batch may keep it.
            mask: bool [F, B], False for an empty bag; None if no bag is empty.
        """
        numbers = self._dense.encode_numbers(dense)
        lengths = np.ones(ids.shape, dtype=np.int32) if mask is None else mask.astype(np.int32, order="C")
        if self._rows.are_rows(ids):
            rows = ids.reshape(-1) if mask is None else ids[mask]
            return FeatureBatch(
                dense=numbers,
                lengths=lengths,
                values=rows,
                one_each=mask is None,
                in_range=True,
                substitutions=None if missing is None else Substitutions(missing=missing),
            )
        flat = ids.reshape(-1) if mask is None else ids[mask]
        bags = RawBags(ids=flat, lengths=lengths, kinds={int}, one_each=mask is None)
        return self._batch(numbers, bags, missing)

    def mistakes(self, columns: Mapping[str, Sequence[Any]], size: int) -> Iterator[FeatureError]:
        """Every wrong value that `encode` would meet."""
        yield from self._dense.mistakes(columns, size)
        yield from self._bag_mistakes(flatten_bags(columns, self._sparse, size))

    def mistakes_jagged(
        self,
        dense: Mapping[str, Sequence[Any]],
        lengths: npt.NDArray[np.int32],
        ids: Sequence[Any],
    ) -> Iterator[FeatureError]:
        """Every wrong value that `encode_jagged` would meet."""
        yield from self._dense.mistakes(dense, lengths.shape[1])
        yield from self._bag_mistakes(_flat(lengths, ids))

    def _batch(
        self,
        dense: npt.NDArray[np.float32],
        bags: RawBags,
        missing: npt.NDArray[np.int64] | None = None,
    ) -> FeatureBatch:
        # max_length is at least 1
        if not bags.one_each and (bags.lengths > self._max_lengths).any():
            raise next(length_mistakes(self._sparse, bags.lengths))
        rows, lengths = self._rows.encode(bags), bags.lengths
        weights = encode_weights(self._sparse, bags.weights, lengths)
        unknown, truncated = self._rows.unknown_ids(rows, lengths), None
        if self._trims:
            truncated = truncated_bags(self._sparse, lengths)
            rows, lengths, weights = trim_bags(self._sparse, rows, lengths, weights)
        # An id that is left out of its bag makes the bag empty.
        one_each = bags.one_each and not self._trims
        told = missing is not None or unknown is not None or truncated is not None
        return FeatureBatch(
            dense=dense,
            lengths=lengths,
            values=rows,
            weights=weights,
            one_each=one_each,
            in_range=True,
            substitutions=Substitutions(missing=missing, unknown_ids=unknown, truncated_bags=truncated)
            if told
            else None,
        )

    def _bag_mistakes(self, bags: RawBags) -> Iterator[FeatureError]:
        yield from length_mistakes(self._sparse, bags.lengths)
        yield from self._rows.mistakes(bags)
        yield from weight_mistakes(self._sparse, bags.weights, bags.lengths)


def _flat(lengths: npt.NDArray[np.int32], ids: Sequence[Any]) -> RawBags:
    return RawBags(ids=ids, lengths=lengths, kinds=set(map(type, ids)))
