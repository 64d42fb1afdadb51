"""``instances`` of numbers and strings, read by msgspec into one small struct a row: no dict, no key a value.

msgspec is the reference reader too. What it does not tell, a key that came twice, the count of colons does.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.features import FeatureError
from handler.counting import count_byte
from handler.fast.doubt import Doubt
from handler.paths import element, member
from handler.shapes.predictions import predictions
from handler.shapes.shape import DecodedRequest, Output, RequestReader

__all__ = ["RowsReader"]

_DOUBTS = (Doubt, FeatureError, RecursionError, msgspec.DecodeError, UnicodeDecodeError)

_GAPS = {int, float, type(None), msgspec.UnsetType}

Number = float | None | msgspec.UnsetType
Bag = int | str | list[int | str] | None | msgspec.UnsetType
Row = Any
Values = tuple[Any, ...]


class RowsReader:
    """Reads rows by name."""

    def __init__(self, reader: RequestReader) -> None:
        declaration = reader.encoder.declaration
        self._encoder = reader.encoder
        self._max_samples = reader.max_samples
        self._defaults = np.array([float(feature.default) for feature in declaration.dense_features])
        self._decoder = _decoder(declaration.dense_names, declaration.sparse_names)

    def read(self, raw: bytes) -> DecodedRequest | None:
        """The request, or None if the reference reader must look."""
        if self._decoder is None:
            return None
        try:
            body = self._decoder.decode(raw)
            rows = list(map(msgspec.structs.astuple, body.instances))
            if len(rows) > self._max_samples:
                return None
            colons = count_byte(raw, ":") - (1 if body.output is msgspec.UNSET else 2)
            batch = self._full(rows, colons) or self._partial(rows, colons)
        except _DOUBTS:
            return None
        output: Output = "probability" if body.output is msgspec.UNSET else body.output
        return DecodedRequest(batch=batch, output=output, content=predictions, path_of=_path_of)

    def _full(self, rows: list[Values], colons: int) -> FeatureBatch | None:
        """The samples, if no feature has more than one number in a row, else None.

        ``colons``: in the rows. As many as values are expected: then no key came twice.
        """
        dense: list[Any] = []
        ids: list[Any] = []
        first = len(self._defaults)
        for row in rows:
            dense += row[:first]
            ids += row[first:]
        values = len(dense) + len(ids)
        absent = 0 if colons == values else dense.count(msgspec.UNSET) + ids.count(msgspec.UNSET)
        if colons != values - absent or not rows:
            return None
        try:
            by_row, missing_numbers = _numbers("d", dense)
            flat, missing_ids = _numbers("q", ids)
        except (TypeError, OverflowError):
            return None
        numbers = np.frombuffer(by_row).reshape(len(rows), -1).T
        if missing_numbers:
            sample, feature = np.divmod(missing_numbers, len(self._defaults))
            numbers[feature, sample] = self._defaults[feature]
        by_feature = np.frombuffer(flat, dtype=np.int64).reshape(len(rows), -1).T
        if not missing_ids:
            lengths = np.ones(by_feature.shape, dtype=np.int32)
            return self._encoder.encode_arrays(numbers, lengths, by_feature.reshape(-1), one_each=True)
        sample, feature = np.divmod(missing_ids, len(by_feature))
        there = np.ones(by_feature.shape, dtype=np.bool_)
        there[feature, sample] = False
        return self._encoder.encode_arrays(numbers, there.astype(np.int32), by_feature[there])

    def _partial(self, rows: list[Values], colons: int) -> FeatureBatch:
        """The samples of any rows. Doubt unless ``colons`` shows that no key came twice."""
        absent = sum(row.count(msgspec.UNSET) for row in rows)
        if colons != len(rows) * len(self._encoder.names) - absent:
            raise Doubt
        columns: dict[str, Sequence[Any]] = dict(
            zip(self._encoder.names, zip(*rows, strict=True), strict=False)
        )
        for name, column in columns.items() if absent else ():
            if msgspec.UNSET in column:
                columns[name] = [None if value is msgspec.UNSET else value for value in column]
        return self._encoder.encode(columns, len(rows))


def _numbers(code: Literal["d", "q"], values: list[Any]) -> tuple[array[Any], list[int]]:
    """``values`` as numbers, and where they have nulls or holes, which become 0. TypeError for anything else."""
    try:
        return array(code, values), []  # unlike NumPy, array takes nothing but numbers
    except TypeError:
        if not set(map(type, values)) <= _GAPS:
            raise
        at = [i for i, value in enumerate(values) if value is None or value is msgspec.UNSET]
    for i in at:
        values[i] = 0
    return array(code, values), at


def _decoder(dense: Sequence[str], sparse: Sequence[str]) -> msgspec.json.Decoder[Any] | None:
    """A decoder of whole bodies; None if a feature has a name that msgspec cannot look for."""
    kinds: list[tuple[str, Any]] = [*((name, Number) for name in dense), *((name, Bag) for name in sparse)]
    try:
        row: Any = msgspec.defstruct(
            "Row",
            [(f"f{i}", kind, msgspec.UNSET) for i, (_, kind) in enumerate(kinds)],
            rename={f"f{i}": name for i, (name, _) in enumerate(kinds)},  # names need not be Python's
            forbid_unknown_fields=True,
            gc=False,
        )
    except ValueError:  # a quote or a backslash, which JSON writes in several ways
        return None
    body = msgspec.defstruct(
        "Body",
        [("instances", list[row]), ("output", msgspec.UnsetType | Output, msgspec.UNSET)],
        forbid_unknown_fields=True,
    )
    return msgspec.json.Decoder(body)


def _path_of(error: FeatureError) -> str:
    return member(element("$.instances", error.sample), error.feature)
