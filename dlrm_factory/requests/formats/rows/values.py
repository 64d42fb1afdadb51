"""The values of rows, one after another as declared → a batch: dense numbers first, then one bag a sparse feature."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.requests.formats.fast.doubt import Doubt
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

    def encode(self, rows: Sequence[Values], colons: int | None) -> FeatureBatch:
        """The samples. Doubt, or FeatureError, for what the reference reader must look at.

        Args:
            rows: all values of each sample.
            colons: written in the rows. As many as there are values: then no key came twice, and no string holds
                one. None if that is known.
        """
        batch = self._numbers_only(rows, colons)
        return self._any(rows, colons) if batch is None else batch

    def _numbers_only(self, rows: Sequence[Values], colons: int | None) -> FeatureBatch | None:
        """The samples, if no feature has more than one number in a row, else None."""
        dense: list[Any] = []
        ids: list[Any] = []
        first = len(self._defaults)
        for row in rows:
            dense += row[:first]
            ids += row[first:]
        if not rows:
            return None
        values = len(dense) + len(ids)
        try:
            by_row, _, absent_numbers = _numbers("d", dense, self._defaults)
            flat, ids_left_out, absent_ids = _numbers("q", ids, self._no_ids)
        except (TypeError, OverflowError):
            return None
        if colons is not None and colons != values - absent_numbers - absent_ids:
            raise Doubt
        numbers = np.frombuffer(by_row).reshape(len(rows), -1).T
        by_feature = np.frombuffer(flat, dtype=np.int64).reshape(len(rows), -1).T
        if not ids_left_out:
            return self._encoder.encode_single_valued(numbers, by_feature)
        there = np.ones(len(ids), dtype=np.bool_)
        there[ids_left_out] = False
        return self._encoder.encode_single_valued(numbers, by_feature, there.reshape(len(rows), -1).T)

    def _any(self, rows: Sequence[Values], colons: int | None) -> FeatureBatch:
        """The samples of any rows."""
        absent = sum(row.count(ABSENT) for row in rows)
        if colons is not None and colons != len(rows) * len(self._encoder.names) - absent:
            raise Doubt
        columns: dict[str, Sequence[Any]] = dict(
            zip(self._encoder.names, zip(*rows, strict=True), strict=False)
        )
        for name, column in columns.items() if absent else ():
            if ABSENT in column:
                columns[name] = [None if value is ABSENT else value for value in column]
        return self._encoder.encode(columns, len(rows))


def _numbers(
    code: Literal["d", "q"], values: list[Any], defaults: Sequence[float]
) -> tuple[array[Any], list[int], int]:
    """``values``, rows of as many as there are ``defaults``. TypeError for what is no number, null or absent.

    Returns the numbers, the places without one, which hold its default, and how many of those are absent.
    """
    try:
        return array(code, values), [], 0  # unlike NumPy, array takes nothing but numbers
    except TypeError:
        pass
    absent = ABSENT
    places = [i for i, value in enumerate(values) if value is None or value is absent]
    unsaid = 0
    for i in places:
        unsaid += values[i] is absent
        values[i] = defaults[i % len(defaults)]
    return array(code, values), places, unsaid
