"""Rows for golden requests, generated: every kind of feature, the far ends of tables, what is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlrm_factory.config.declaration import DenseFeature, DLRMDeclaration, SparseFeature
from dlrm_factory.features import Vocabularies
from dlrm_factory.features.ids import unmix_int64

__all__ = ["generated_rows"]

_RANDOM_ROWS = 13
_LONGEST_BAG = 4
_MISSING = 0.15  # of the values in random rows

Id = int | str


def generated_rows(declaration: DLRMDeclaration, vocabularies: Vocabularies | None) -> list[dict[str, Any]]:
    """16 rows by name, raw values, the same for the same declaration and vocabularies.

    The first is empty, the second takes the last row of every table, the third the first; the others are random.
    """
    random = np.random.default_rng(20)
    ids = {f.name: _Ids(f, declaration, vocabularies) for f in declaration.sparse_features}
    last = {feature.name: _bag(feature, [ids[feature.name].last]) for feature in declaration.sparse_features}
    first = {
        feature.name: _bag(feature, [ids[feature.name].first]) for feature in declaration.sparse_features
    }
    rows: list[dict[str, Any]] = [{}, last, first]
    for _ in range(_RANDOM_ROWS):
        row: dict[str, Any] = {f.name: _number(f, random) for f in declaration.dense_features}
        for feature in declaration.sparse_features:
            size = int(random.integers(0, min(_LONGEST_BAG, feature.max_length) + 1))
            row[feature.name] = _bag(feature, [ids[feature.name].draw(random) for _ in range(size)], random)
        rows.append({name: value for name, value in row.items() if random.random() >= _MISSING})
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


class _Ids:
    """Raw ids of one feature. None stands for an id of a table that has none."""

    def __init__(
        self, feature: SparseFeature, declaration: DLRMDeclaration, vocabularies: Vocabularies | None
    ) -> None:
        self._kind = feature.ids
        self._rows = declaration.table(feature.table).num_embeddings
        self._known: list[Id] = []
        self._unknown = feature.ids == "vocabulary" and feature.out_of_vocabulary != "error"
        if feature.ids == "vocabulary" and vocabularies is not None:
            entries = vocabularies.sizes[feature.table]
            spread = sorted({place * (entries - 1) // 15 for place in range(16)}) if entries else []
            self._known = vocabularies.ids_of(feature.table, spread)

    @property
    def first(self) -> Id | None:
        return self._at(0)

    @property
    def last(self) -> Id | None:
        return self._at(self._rows - 1)

    def draw(self, random: np.random.Generator) -> Id | None:
        if self._kind == "vocabulary":
            if self._unknown and random.random() < 0.2:
                return f"never seen {random.integers(1000)}"
            return self._known[random.integers(len(self._known))] if self._known else None
        row = int(random.integers(self._rows))
        return f"id_{row}" if self._kind == "hash" and random.random() < 0.5 else self._at(row)

    def _at(self, row: int) -> Id | None:
        """An id that leads to ``row``; for a vocabulary its first or its last."""
        if self._kind == "index":
            return row
        if self._kind == "hash":  # row = H(id) mod rows, and H is one to one on integers
            return int(unmix_int64(np.array([row], dtype=np.uint64))[0])
        if not self._known:
            return None
        return self._known[0 if row == 0 else -1]


def _bag(feature: SparseFeature, ids: list[Id | None], random: np.random.Generator | None = None) -> Any:
    found = [each for each in ids if each is not None]
    if feature.weighted and random is not None:
        return {"ids": found, "weights": [round(float(random.uniform(0, 2)), 2) for _ in found]}
    return found[0] if len(found) == 1 else found


def _number(feature: DenseFeature, random: np.random.Generator) -> float:
    """A raw number that the transform makes of the order of 1, so that scores are not all 0 or 1."""
    number = float(random.normal())
    if feature.is_standardized and feature.mean is not None and feature.std is not None:
        number = feature.mean + number * feature.std
    elif feature.transform == "none":
        number += feature.default
    if feature.takes_log:
        number = math.expm1(min(abs(number), 20.0))
    return float(f"{number:.4g}")
