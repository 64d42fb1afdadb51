"""``instances`` of numbers and strings, read by msgspec into one small struct a row: no dict, no key a value.

The values of rows stand one after another as declared: dense numbers first, then one bag a sparse feature.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features import FeatureError
from dlrm_factory.requests.formats.mistakes import element, member
from dlrm_factory.requests.formats.outputs import Asked, ModelOutputs, Output
from dlrm_factory.requests.formats.rows.reference import value_path
from dlrm_factory.requests.formats.shape import (
    FALL_BACKS,
    DecodedRequest,
    FallBack,
    PlainForm,
    RequestReader,
)

__all__ = [
    "ABSENT",
    "ASKED_FIELDS",
    "Bag",
    "Number",
    "RowValues",
    "RowsReader",
    "Values",
    "asked_of",
    "body_decoder",
    "column_type",
    "row_type",
    "sent_values",
    "single_row_path",
    "struct_of",
]

# In place of a value that a row leaves out; null is a value.
ABSENT = msgspec.UNSET

# As msgspec's decoders take them: it refuses floats for ids, and booleans.
Number = float | None | msgspec.UnsetType
Bag = int | str | list[int | str] | None | msgspec.UnsetType
Values = Sequence[Any]

# Fields of every body beside its samples.
ASKED_FIELDS: tuple[tuple[str, Any, Any], ...] = (
    ("output", msgspec.UnsetType | Output, ABSENT),
    ("outputs", msgspec.UnsetType | list[str], ABSENT),
)


class RowsReader:
    """Reads rows by name."""

    def __init__(self, reader: RequestReader) -> None:
        declaration = reader.encoder.declaration
        self._max_samples = reader.max_samples
        self._values = RowValues(reader)
        self._outputs = reader.outputs
        row: Any = row_type(declaration.dense_names, declaration.sparse_names)
        self._decoder = None if row is None else body_decoder("instances", list[row])

    def read(self, raw: bytes) -> DecodedRequest | None:
        """The request, or None if the reference reader must look."""
        if self._decoder is None:
            return None
        try:
            body = self._decoder.decode(raw)
            asked = asked_of(body, self._outputs)
            rows = list(map(msgspec.structs.astuple, body.instances))
            if len(rows) > self._max_samples:
                return None
            batch = self._values.encode(rows)
        except FALL_BACKS:
            return None
        return DecodedRequest(
            batch=batch, asked=asked, form=PlainForm.PREDICTIONS, path_of=_path_of, shape="rows"
        )


def _path_of(error: FeatureError) -> str:
    return member(element("$.instances", error.sample), error.feature)


def row_type(dense: Sequence[str], sparse: Sequence[str]) -> Any:
    """A struct of one row, values by name, `ABSENT` for what is left out. None if msgspec cannot look for a name."""
    return struct_of(dense, sparse, Number, Bag, ABSENT)


def column_type(dense: Sequence[str], sparse: Sequence[str]) -> Any:
    """A struct of columns with one value each, ``(ABSENT,)`` where there is no column. None as above."""
    return struct_of(dense, sparse, tuple[Number], tuple[Bag], (ABSENT,))


def body_decoder(key: str, kind: Any) -> msgspec.json.Decoder[Any]:
    """A decoder of whole bodies, whose ``key`` holds a ``kind``."""
    fields: list[tuple[str, Any, Any]] | Any = [(key, kind), *ASKED_FIELDS]
    return msgspec.json.Decoder(msgspec.defstruct("Body", fields, forbid_unknown_fields=True, gc=False))


def asked_of(body: Any, outputs: ModelOutputs) -> Asked:
    """Outputs that ``body``, with `ASKED_FIELDS`, asks for. FallBack if they are wrong."""
    output: Output = "probability" if body.output is ABSENT else body.output
    if body.outputs is ABSENT:
        return outputs.asked[output]
    names = tuple(body.outputs)
    if not outputs.are_plain(names):
        raise FallBack
    return Asked(output, names)


def sent_values(declaration: DLRMDeclaration, values: Values) -> dict[str, Any]:
    """The values of one row by name, without those that it leaves out."""
    names = (*declaration.dense_names, *declaration.sparse_names)
    return {name: value for name, value in zip(names, values, strict=True) if value is not ABSENT}


def single_row_path(error: FeatureError, declaration: DLRMDeclaration, values: Values) -> str:
    """Path of the wrong value in the body of one row."""
    return value_path(sent_values(declaration, values), error, element("$.instances", 0))


def struct_of(
    dense: Sequence[str],
    sparse: Sequence[str],
    number: Any,
    bag: Any,
    absent: Any,
    also: Sequence[tuple[str, Any]] = (),
) -> Any:
    """A struct of values by name, each ``absent`` where it is left out. None if msgspec cannot look for a name.

    Args:
        number, bag: types of a dense and of a sparse feature's value.
        also: names and types of further fields; they come last.
    """
    kinds = [*((name, number) for name in dense), *((name, bag) for name in sparse), *also]
    try:
        return msgspec.defstruct(
            "Row",
            [(f"f{i}", kind, absent) for i, (_, kind) in enumerate(kinds)],
            rename={f"f{i}": name for i, (name, _) in enumerate(kinds)},  # names need not be Python's
            forbid_unknown_fields=True,
            gc=False,
        )
    except ValueError:  # a quote or a backslash, which JSON writes in several ways
        return None


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
            by_row, left_out = _numbers("d", dense, self._defaults)
            flat, ids_left_out = _numbers("q", ids, self._no_ids)
        except (TypeError, OverflowError):
            return None
        numbers = np.frombuffer(by_row).reshape(len(rows), -1).T
        by_feature = np.frombuffer(flat, dtype=np.int64).reshape(len(rows), -1).T
        missing = np.bincount(np.array(left_out) % first, minlength=first) if left_out else None
        if not ids_left_out:
            return self._encoder.encode_single_valued(numbers, by_feature, missing=missing)
        there = np.ones(len(ids), dtype=np.bool_)
        there[ids_left_out] = False
        mask = there.reshape(len(rows), -1).T
        return self._encoder.encode_single_valued(numbers, by_feature, mask, missing)

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
