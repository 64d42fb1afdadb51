"""Raw numbers → the model's dense features. Training and serving share `transform_dense`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import DenseFeature
from dlrm_factory.errors import WeightsError
from dlrm_factory.features.feature_error import FeatureError, shown

__all__ = ["DenseEncoder", "log1p", "transform_dense"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_NUMBERS = {int, float}
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


def log1p(values: Float32) -> Float32:
    """ln(1 + max(x, 0)) of float32 of any shape.

    Computed in float64 and rounded once, so that no vector unit's own float32 logarithm shows in scores.
    """
    return np.log1p(np.maximum(values, 0.0), dtype=np.float64).astype(np.float32)


class DenseTransform:
    """The declared transforms in their order, column by column: clip, log1p, standardise."""

    def __init__(self, features: Sequence[DenseFeature]) -> None:
        self._clipped = [i for i, feature in enumerate(features) if feature.clip]
        self._lower, self._upper = (
            np.array([features[i].clip for i in self._clipped], dtype=np.float32).reshape(-1, 2).T
        )
        self._logs = [i for i, feature in enumerate(features) if feature.takes_log]
        self._scaled = [i for i, feature in enumerate(features) if feature.is_standardized]
        # Before training has found them they are NaN.
        statistics = [(features[i].mean, features[i].std) for i in self._scaled]
        self._mean, self._std = np.array(statistics, dtype=np.float64).reshape(-1, 2).T

    def __call__(self, dense: Float32, *, until_standardized: bool = False) -> Float32:
        """Float32 [B, number of features], as ``dense``, which is left as it is; missing values have their defaults.

        ``until_standardized``: stop before the last, whose mean and std training has yet to find.
        """
        scaled = [] if until_standardized else self._scaled
        if not (self._clipped or self._logs or scaled):
            return dense
        transformed = dense.copy()
        if self._clipped:
            transformed[:, self._clipped] = np.clip(dense[:, self._clipped], self._lower, self._upper)
        if self._logs:
            transformed[:, self._logs] = log1p(transformed[:, self._logs])
        if scaled:
            transformed[:, scaled] = ((transformed[:, scaled] - self._mean) / self._std).astype(np.float32)
        return transformed


def transform_dense(
    dense: Float32, features: Sequence[DenseFeature], *, until_standardized: bool = False
) -> Float32:
    """Apply the `DenseTransform` of ``features`` to ``dense``, float32 [B, len(features)]."""
    return DenseTransform(features)(dense, until_standardized=until_standardized)


class DenseEncoder:
    """Columns of JSON numbers → float32 [B, number of dense features], checked and transformed."""

    def __init__(self, features: Sequence[DenseFeature]) -> None:
        """WeightsError for a standardised feature without mean and std."""
        for feature in features:
            if feature.is_standardized and (feature.mean is None or feature.std is None):
                raise WeightsError(
                    f'dense feature "{feature.name}" is standardised, but has no mean and std; take the '
                    "declaration of the checkpoint that `dlrm train` wrote, or declare them"
                )
        self.features = tuple(features)
        self._transform = DenseTransform(self.features)

    def encode(self, columns: Mapping[str, Sequence[Any]], size: int) -> Float32:
        """Float32 [size, number of features]. FeatureError names the first value that is not a finite number.

        ``columns`` holds ``size`` raw values a feature; an absent column or a null takes the default.
        """
        flat = list(chain.from_iterable(self._column(feature, columns, size) for feature in self.features))
        try:
            if set(map(type, flat)) <= _NUMBERS:
                wide = np.fromiter(flat, dtype=np.float64, count=len(flat))
                return self.encode_numbers(wide.reshape(len(self.features), size))
        except (OverflowError, FeatureError):  # an integer beyond float64, or a number beyond float32
            pass
        raise next(self.mistakes(columns, size))

    def missing(self, columns: Mapping[str, Sequence[Any]], size: int) -> npt.NDArray[np.int64] | None:
        """Samples of ``columns`` that lack each feature: int64 [number of features]; None if none does."""
        found = [
            size if (column := columns.get(feature.name)) is None else column.count(None)
            for feature in self.features
        ]
        return np.array(found, dtype=np.int64) if any(found) else None

    def encode_numbers(self, numbers: Float64) -> Float32:
        """Float32 [B, number of features] of ``numbers``: float64 [number of features, B], none missing.

        FeatureError names the first that is not finite or beyond float32.
        """
        # NaN is within no bounds. Counting takes half as long as `all`, or a minimum and a maximum.
        if np.count_nonzero(np.abs(numbers) <= _MAX_FLOAT32) != numbers.size:
            columns = {f.name: row.tolist() for f, row in zip(self.features, numbers, strict=True)}
            for mistake in self.mistakes(columns, numbers.shape[1]):
                raise mistake
        return self._transform(np.ascontiguousarray(numbers.T, dtype=np.float32))

    def mistakes(self, columns: Mapping[str, Sequence[Any]], size: int) -> Iterator[FeatureError]:
        """Every wrong value, feature after feature."""
        for feature in self.features:
            for sample, value in enumerate(self._column(feature, columns, size)):
                wrong = _problem_with(value, feature.default)
                if wrong:
                    message = f'dense feature "{feature.name}": {wrong}'
                    yield FeatureError(message, feature=feature.name, sample=sample)

    def _column(
        self, feature: DenseFeature, columns: Mapping[str, Sequence[Any]], size: int
    ) -> Sequence[Any]:
        column = columns.get(feature.name)
        if column is None:
            return [feature.default] * size
        return [feature.default if v is None else v for v in column] if None in column else column


def _problem_with(value: Any, default: float) -> str | None:
    if isinstance(value, bool):
        return f"{shown(value)} is a boolean; send a number, such as {int(value)}"
    if isinstance(value, str):
        return f"{shown(value)} is a string; send a number, without quotes"
    if not isinstance(value, (int, float)):
        return f"{shown(value)} is not a number; send one number a sample"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{shown(value)} is not a finite number; leave the feature out to take its default {default}"
    if not _fits_float32(value):
        limits = f"[-{_MAX_FLOAT32:.8g}, {_MAX_FLOAT32:.8g}]"
        return f"{shown(value)} is out of float32's range {limits}; send a smaller number"
    return None


def _fits_float32(value: int | float) -> bool:
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.float32(float(value))))
    except OverflowError:
        return False
