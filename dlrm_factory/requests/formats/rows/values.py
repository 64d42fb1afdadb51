"""The values of rows, one after another as declared → a batch: dense numbers first, then one bag a sparse feature."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.requests.formats.shape import RequestReader

__all__ = ["ABSENT", "Bag", "Number", "RowValues", "Values"]

# What a decoder puts where a row says nothing; null is said.
ABSENT = msgspec.UNSET

# As msgspec's decoders take them: it refuses floats for ids, and booleans.
Number = float | None | msgspec.UnsetType
Bag = int | str | list[int | str] | None | msgspec.UnsetType
Values = Sequence[Any]


class RowValues:
    """Encodes rows of values, each a `Number` or a `Bag` or `ABSENT`, in declared order."""

    def __init__(self, reader: RequestReader) -> None:
        self._encoder = reader.encoder
        self._defaults = [float(feature.default) for feature in reader.encoder.declaration.dense_features]
        self._no_ids = [0] * len(reader.encoder.declaration.sparse_features)

    def encode(self, rows: Sequence[Values]) -> FeatureBatch:
        """The samples, from all values of each. FeatureError for what the reference reader must look at."""
        batch = self._numbers_only(rows)
        return self._any(rows) if batch is None else batch

    def _numbers_only(self, rows: Sequence[Values]) -> FeatureBatch | None:
        """The samples, if no feature has more than one number in a row, else None."""
        dense: list[Any] = []
        ids: list[Any] = []
        first = len(self._defaults)
        for row in rows:
            dense += row[:first]
            ids += row[first:]
        if not rows:
            return None
        try:
            by_row, _ = _numbers("d", dense, self._defaults)
            flat, ids_left_out = _numbers("q", ids, self._no_ids)
        except (TypeError, OverflowError):
            return None
        numbers = np.frombuffer(by_row).reshape(len(rows), -1).T
        by_feature = np.frombuffer(flat, dtype=np.int64).reshape(len(rows), -1).T
        if not ids_left_out:
            return self._encoder.encode_ones(numbers, by_feature)
        there = np.ones(len(ids), dtype=np.bool_)
        there[ids_left_out] = False
        return self._encoder.encode_ones(numbers, by_feature, there.reshape(len(rows), -1).T)

    def _any(self, rows: Sequence[Values]) -> FeatureBatch:
        """The samples of any rows."""
        columns: dict[str, Sequence[Any]] = dict(
            zip(self._encoder.names, zip(*rows, strict=True), strict=False)
        )
        for name, column in columns.items():
            if ABSENT in column:
                columns[name] = [None if value is ABSENT else value for value in column]
        return self._encoder.encode(columns, len(rows))


def _numbers(
    code: Literal["d", "q"], values: list[Any], defaults: Sequence[float]
) -> tuple[array[Any], list[int]]:
    """``values``, rows of as many as there are ``defaults``. TypeError for what is no number, null or absent.

    Returns the numbers, and the places without one, which hold its default.
    """
    try:
        return array(code, values), []  # unlike NumPy, array takes nothing but numbers
    except TypeError:
        pass
    absent = ABSENT
    places = [i for i, value in enumerate(values) if value is None or value is absent]
    for i in places:
        values[i] = defaults[i % len(defaults)]
    return array(code, values), places
