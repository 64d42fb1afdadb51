"""Weighted bags: ``{"ids": [3, 9], "weights": [0.5, 2.0]}``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import SparseFeature
from dlrm_factory.features.feature_error import FeatureError, shown

__all__ = ["encode_weights", "problem_with_bag", "split_bags", "weight_mistakes"]

Float32 = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int32]

_KEYS = {"ids", "weights"}
_NUMBERS = {int, float}


def split_bags(column: Sequence[Any]) -> tuple[list[list[Any]], list[Any]]:
    """The ids of each bag, and the weights of all ids one after another; 1 where a bag has none.

    An object that is not a weighted bag becomes a bag of itself: as an id it is wrong, and so is found later.
    """
    bags: list[list[Any]] = []
    weights: list[Any] = []
    for value in column:
        own = None
        if type(value) is dict and problem_with_bag(value) is None:
            bags.append(value["ids"])
            own = value.get("weights")
        else:
            bags.append([] if value is None else value if type(value) is list else [value])
        weights += [1.0] * len(bags[-1]) if own is None else own
    return bags, weights


def problem_with_bag(value: dict[str, Any]) -> str | None:
    """Reason that ``value`` is not a weighted bag; None if it is one."""
    for key in value:
        if key not in _KEYS:
            return f'{shown(key)} does not belong into a bag; send {{"ids": [...], "weights": [...]}}'
    ids, weights = value.get("ids"), value.get("weights")
    if not isinstance(ids, list):
        found = shown(ids) if "ids" in value else "missing"
        return f'"ids" is {found}; send {{"ids": [...], "weights": [...]}}'
    if weights is None:
        return None
    if not isinstance(weights, list):
        return f'"weights" is {shown(weights)}; send a list of numbers'
    if len(ids) != len(weights):
        return f"{len(ids)} ids have {len(weights)} weights; send one weight for each id"
    return None


def encode_weights(
    features: Sequence[SparseFeature], weights: dict[int, list[Any]], lengths: Lengths
) -> Float32 | None:
    """Float32 [lengths.sum()], or None if none were sent. FeatureError names the first that is not a number.

    ``weights``: by place of the feature, those of all its bags.
    """
    if not weights:
        return None
    ends = np.cumsum(lengths.sum(axis=1, dtype=np.int64))
    flat = np.ones(int(ends[-1]), dtype=np.float32)
    for f, raw in weights.items():
        numbers = _numbers(raw)
        if numbers is None:
            raise next(weight_mistakes(features, weights, lengths))
        flat[ends[f] - len(raw) : ends[f]] = numbers
    return flat


def weight_mistakes(
    features: Sequence[SparseFeature], weights: dict[int, list[Any]], lengths: Lengths
) -> Iterator[FeatureError]:
    """A FeatureError for each weight that is not a finite number."""
    for f, raw in weights.items():
        name, at = features[f].name, 0
        for sample, length in enumerate(lengths[f].tolist()):
            for position, value in enumerate(raw[at : at + length]):
                wrong = _problem_with(value)
                if wrong:
                    message = f'sparse feature "{name}": weight {shown(value)} {wrong}'
                    yield FeatureError(
                        message, feature=name, sample=sample, position=position, part="weights"
                    )
            at += length


def _numbers(raw: list[Any]) -> Float32 | None:
    if not set(map(type, raw)) <= _NUMBERS:
        return None
    try:
        with np.errstate(over="ignore"):
            numbers = np.array(raw, dtype=np.float64).astype(np.float32)
    except OverflowError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _problem_with(value: Any) -> str | None:
    if type(value) not in _NUMBERS:
        kind = "a boolean" if isinstance(value, bool) else "a string" if isinstance(value, str) else None
        return f"is {kind}; send a number" if kind else "is not a number; send one number for each id"
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    return None if _numbers([value]) is not None else "is out of float32's range; send a smaller number"
