"""Raw columns of bags → raw ids, feature-major, and the bags' lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.config import SparseFeature
from dlrm_factory.features.feature_error import FeatureError
from dlrm_factory.features.weights import split_bags

__all__ = ["RawBags", "flatten_bags", "length_limits", "length_mistakes"]

Lengths = npt.NDArray[np.int32]

_ONE_OR_NONE = {int, str, type(None)}
_NO_LIMIT = np.iinfo(np.int32).max


class RawBags(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Bags as they were sent.

    Fields:
        ids: raw ids, feature-major: a list that may still hold anything, or an int64 array.
        lengths: int32 [F, B].
        kinds: the types among ``ids``; asking each id costs as much as converting it, so it is done once.
        weights: by place of a feature, the weights of all its ids; only of features that were sent any.
        one_each: every bag is known to hold one id.
    """

    ids: Sequence[Any] | npt.NDArray[np.int64]
    lengths: Lengths
    kinds: set[type]
    weights: dict[int, list[Any]] = msgspec.field(default_factory=dict)
    one_each: bool = False


def flatten_bags(
    columns: Mapping[str, Sequence[Any]], features: Sequence[SparseFeature], size: int
) -> RawBags:
    """The bags of ``size`` samples, however long.

    A bag is one id, a list of ids, or null for an empty bag; an absent column is all empty bags. A weighted
    feature's may also be an object of ids and weights.
    """
    weights: dict[int, list[Any]] = {}
    ids: list[Any] = []
    kinds: set[type] = set()
    lengths = np.ones((len(features), size), dtype=np.int32)
    for f, feature in enumerate(features):
        column = columns.get(feature.name)
        if column is None:
            lengths[f] = 0
            continue
        found = set(map(type, column))
        if feature.weighted and dict in found:
            own_ids, weights[f] = split_bags(column)
            lengths[f] = list(map(len, own_ids))
            column = list(chain.from_iterable(own_ids))
            found = set(map(type, column))
        elif type(None) in found and found <= _ONE_OR_NONE:
            lengths[f] = [value is not None for value in column]
            column = [value for value in column if value is not None]
            found.discard(type(None))
        elif list in found or type(None) in found:
            bags = column if found == {list} else [_as_bag(value) for value in column]
            lengths[f] = list(map(len, bags))
            column = list(chain.from_iterable(bags))
            found = set(map(type, column))
        ids += column
        kinds |= found
    return RawBags(ids=ids, lengths=lengths, kinds=kinds, weights=weights)


def length_limits(features: Sequence[SparseFeature]) -> Lengths:
    """The longest bag that each feature takes, int32 [F, 1]."""
    most = [f.max_length if f.over_max_length == "error" else _NO_LIMIT for f in features]
    return np.array(most, dtype=np.int32).reshape(-1, 1)


def length_mistakes(features: Sequence[SparseFeature], lengths: Lengths) -> Iterator[FeatureError]:
    """A FeatureError for each of ``lengths`` [F, B] that is over its feature's `length_limits`."""
    for f, sample in np.argwhere(lengths > length_limits(features)):
        feature = features[f]
        yield FeatureError(
            f'sparse feature "{feature.name}": {lengths[f, sample]} ids in one bag is over max_length '
            f"{feature.max_length}; send fewer ids, or raise max_length in the declaration, or declare "
            "over_max_length: truncate",
            feature=feature.name,
            sample=int(sample),
            over_limit=True,
        )


def _as_bag(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if type(value) is list else [value]
