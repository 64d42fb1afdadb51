"""Group of each sample by a raw column, such as the user, for GAUC."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError
from dlrm_factory.features.arrow import decoded

__all__ = ["GroupCodes", "groups_of_batch"]

Int64 = npt.NDArray[np.int64]


class GroupCodes:
    """Collects a column chunk by chunk; equal values, be they text or numbers, are one group.

    Takes 8 bytes a sample, and memory for each different value.
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self._codes: dict[str, int] = {}
        self._parts: list[Int64] = []

    def add(self, values: pa.Array) -> None:
        """One value a sample. DataError if it holds lists."""
        values = decoded(values)
        if pa.types.is_nested(values.type):
            raise DataError(
                f'$.training.group_column: column "{self._column}" holds {values.type}; '
                "name a column with one value a row"
            )
        encoded = pc.cast(values, pa.string()).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        codes = np.array([self._codes.setdefault(name, len(self._codes)) for name in names], dtype=np.int64)
        places = pc.fill_null(encoded.indices, len(names)).to_numpy(zero_copy_only=False)
        self._parts.append(np.append(codes, -1)[places])

    def codes(self) -> Int64:
        """Group of each sample added, int64 [N]; -1 where there is no value."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self._parts])


def groups_of_batch(batch: FeatureBatch, declaration: DLRMDeclaration) -> pa.Array | None:
    """The rows that ``training.group_column`` looks up, one a sample, null for an empty bag.

    None if the column is no sparse feature, or one with several ids a sample: an encoded batch does not tell then.
    """
    column = declaration.training.group_column
    if column not in declaration.sparse_names:
        return None
    place = declaration.sparse_names.index(column)
    lengths = batch.lengths[place]
    if lengths.max(initial=0) > 1:
        return None
    start = int(batch.lengths[:place].sum(dtype=np.int64))
    rows = np.zeros(len(batch), dtype=np.int64)
    rows[lengths == 1] = batch.values[start : start + int(lengths.sum())]
    return pa.array(rows, mask=lengths == 0)
