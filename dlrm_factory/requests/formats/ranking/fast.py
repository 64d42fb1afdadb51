"""Rankings, read by msgspec into one small struct of the context, and one a candidate or one of columns.

A candidate's struct has a place for every feature, or, once contexts with the same features have come for a while, for
those alone that these contexts lack: so decoding takes half as long. A body that does not fit is decoded anew.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureError
from dlrm_factory.requests.formats.mistakes import element, member
from dlrm_factory.requests.formats.ranking.order import order_of
from dlrm_factory.requests.formats.ranking.reference import ID, RankingForm, is_wrong_id, with_context
from dlrm_factory.requests.formats.rows.fast import (
    ABSENT,
    ASKED_FIELDS,
    Bag,
    Number,
    RowValues,
    asked_of,
    row_type,
    struct_of,
)
from dlrm_factory.requests.formats.shape import FALL_BACKS, DecodedRequest, FallBack, RequestReader

__all__ = ["RankingReader"]

_CONTEXT_PATH, _CANDIDATES_PATH = "$.context", "$.candidates"
# Contexts with the same features, one after another, from which on the next one is expected to have them too.
_ALIKE = 8
_MAX_LAYOUTS = 16

_Label = int | str | None
_FIELDS: tuple[tuple[str, Any, Any], ...] = (
    ("top_k", int | None | msgspec.UnsetType, ABSENT),
    ("rank_by", str | None | msgspec.UnsetType, ABSENT),
    *ASKED_FIELDS,
)

Columns = dict[str, Sequence[Any]]


class RankingReader:
    """Reads a context and its candidates. For one thread at a time."""

    def __init__(self, reader: RequestReader) -> None:
        declaration = reader.encoder.declaration
        self._reader, self._encoder, self._declaration = reader, reader.encoder, declaration
        self._names = reader.encoder.names
        self._defaults = {feature.name: float(feature.default) for feature in declaration.dense_features}
        self._sparse = {name: place for place, name in enumerate(declaration.sparse_names)}
        self._context_values = RowValues(reader)
        self._context: Any = row_type(declaration.dense_names, declaration.sparse_names)
        # Takes every body, those with contexts slowly. None if there is no telling a candidate's id from a feature.
        takes_ids = self._context is not None and ID not in self._encoder.known
        self._any = self._make_layout((False,) * len(self._names)) if takes_ids else None
        self._layout = self._any
        self._layouts: OrderedDict[tuple[bool, ...], _Layout] = OrderedDict()
        self._before: tuple[bool, ...] = ()  # features in the last context
        self._alike = 0  # contexts with these features, one after another

    def read(self, raw: bytes) -> DecodedRequest | None:
        """The request, or None if the reference reader must look."""
        if self._any is None or self._layout is None:
            return None
        try:
            layout = self._layout
            try:
                body = layout.decode(raw)
            except msgspec.DecodeError:  # a candidate with what the layout's contexts have, for one
                layout = self._any
                body = layout.decode(raw)
            self._expect(_are_there(self._values(body)))
            return self._read(body, layout)
        except (*FALL_BACKS, RequestError):
            return None

    def _expect(self, in_context: tuple[bool, ...]) -> None:
        """Choose the layout that the next body is tried with, after one with these features in its context."""
        self._alike = self._alike + 1 if in_context == self._before else 0
        self._before = in_context
        if self._alike < _ALIKE:
            self._layout = self._any
            return
        if in_context not in self._layouts:
            self._layouts[in_context] = self._make_layout(in_context)
            if len(self._layouts) > _MAX_LAYOUTS:
                self._layouts.popitem(last=False)
        self._layout = self._layouts[in_context]

    def _values(self, body: Any) -> Sequence[Any]:
        if body.context is ABSENT or body.context is None:
            return (ABSENT,) * len(self._names)
        values: Sequence[Any] = msgspec.structs.astuple(body.context)
        return values

    def _make_layout(self, in_context: tuple[bool, ...]) -> _Layout:
        return _Layout(self._context, self._declaration.dense_names, list(self._sparse), in_context)

    def _read(self, body: Any, layout: _Layout) -> DecodedRequest:
        asked = asked_of(body, self._reader.outputs)
        top_k = None if body.top_k is ABSENT else body.top_k
        if top_k is not None and top_k < 1:
            raise FallBack
        rank_by = self._reader.outputs.rank_by(None if body.rank_by is ABSENT else body.rank_by, asked.names)
        is_rows = type(body.candidates) is list
        columns, ids, size = layout.columns(body.candidates)
        if not 0 < size <= self._reader.max_samples:
            raise FallBack
        labels, values = _labels(ids), self._values(body)
        context = {
            name: value for name, value in zip(self._names, values, strict=True) if value is not ABSENT
        }
        if not context.keys().isdisjoint(columns):
            raise FallBack
        ranked_by = _with_nulls({name: columns[name] for name in rank_by.names if name in columns})
        order = order_of(
            rank_by, self._declaration, context, ranked_by, _CANDIDATES_PATH if is_rows else None
        )
        one, batch = self._context_values.encode([values]), self._encode(columns, size)
        shared, batch = with_context(self._declaration, context, one, batch)
        return DecodedRequest(
            batch=batch,
            asked=asked,
            form=RankingForm(labels=labels, top_k=top_k, order=order),
            path_of=partial(_path_of, context, None if is_rows else columns),
            context=shared,
            shape="ranking",
        )

    def _encode(self, columns: Columns, size: int) -> FeatureBatch:
        """The candidates, with nothing of the context."""
        try:
            return self._encode_numbers(columns, size)
        except (TypeError, OverflowError):  # bags, strings
            return self._encoder.encode(_with_nulls(columns), size)

    def _encode_numbers(self, columns: Columns, size: int) -> FeatureBatch:
        """The candidates. TypeError or OverflowError if a bag is not one int64, null or absent."""
        dense = np.empty((len(self._defaults), size))
        missing = np.full(len(self._defaults), size, dtype=np.int64)
        for place, (name, default) in enumerate(self._defaults.items()):
            column = columns.get(name)
            if column is None:
                dense[place] = default
            else:
                numbers, left_out = _numbers("d", column, default)
                dense[place] = numbers
                missing[place] = len(left_out)
        ids = np.zeros((len(self._sparse), size), dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=np.bool_)
        for name, place in self._sparse.items():
            column = columns.get(name)
            if column is not None:
                numbers, left_out = _numbers("q", column, 0)
                ids[place], mask[place] = numbers, True
                mask[place, left_out] = False
        return self._encoder.encode_single_valued(
            dense, ids, None if mask.all() else mask, missing if missing.any() else None
        )


class _Layout:
    """Types that a body is decoded to when its context holds certain features, and candidates may hold the others."""

    def __init__(
        self, context: Any, dense: Sequence[str], sparse: Sequence[str], in_context: tuple[bool, ...]
    ) -> None:
        """``in_context``: of each feature, the dense ones first."""
        is_own = dict(zip((*dense, *sparse), (not there for there in in_context), strict=True))
        self._names = [name for name, own in is_own.items() if own]
        numbers, bags = ([name for name in names if is_own[name]] for names in (dense, sparse))
        label, optional = _Label, msgspec.UnsetType
        row: Any = struct_of(numbers, bags, Number, Bag, ABSENT, also=[(ID, label | optional)])
        lists: Any = struct_of(
            numbers,
            bags,
            list[Number] | optional,
            list[Bag] | optional,
            ABSENT,
            also=[(ID, list[label] | optional)],  # type: ignore[valid-type]
        )
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
            ("candidates", list[row] | lists),
            ("context", context | None | optional, ABSENT),
            *_FIELDS,
        ]
        self.decode = msgspec.json.Decoder(
            msgspec.defstruct("Body", fields, forbid_unknown_fields=True, gc=False)
        ).decode

    def columns(self, candidates: Any) -> tuple[Columns, Sequence[Any] | None, int]:
        """Values by name, of the features that a candidate has; ids, None if no candidate has one; candidates.

        FallBack for columns of several lengths, or none.
        """
        is_rows = type(candidates) is list
        if is_rows:
            sent = list(zip(*map(msgspec.structs.astuple, candidates), strict=True))
            found: Columns = {
                name: column
                for name, column in zip(self._names, sent[:-1], strict=bool(sent))
                if column[0] is not ABSENT or column.count(ABSENT) < len(column)
            }
            ids = sent[-1] if sent and sent[-1].count(ABSENT) < len(candidates) else None
            return found, ids, len(candidates)
        *columns, ids = msgspec.structs.astuple(candidates)
        found = {
            name: column for name, column in zip(self._names, columns, strict=True) if column is not ABSENT
        }
        ids = None if ids is ABSENT else ids
        sizes = {len(column) for column in (*found.values(), *([] if ids is None else [ids]))}
        if len(sizes) != 1:
            raise FallBack
        return found, ids, sizes.pop()


def _are_there(values: Sequence[Any]) -> tuple[bool, ...]:
    return tuple(value is not ABSENT for value in values)


def _numbers(
    code: Literal["d", "q"], column: Sequence[Any], default: float
) -> tuple[npt.NDArray[Any], list[int]]:
    """The numbers, and the places of null or absent ones, which hold the default. TypeError for anything else."""
    left_out: list[int] = []
    try:
        found = array(code, column)  # unlike NumPy, array takes nothing but numbers
    except TypeError:
        left_out = [i for i, value in enumerate(column) if value is None or value is ABSENT]
        filled = list(column)
        for i in left_out:
            filled[i] = default
        found = array(code, filled)
    return np.frombuffer(found, dtype=np.float64 if code == "d" else np.int64), left_out


def _with_nulls(columns: Columns) -> Columns:
    return {
        name: [None if value is ABSENT else value for value in column] if ABSENT in column else column
        for name, column in columns.items()
    }


def _labels(ids: Sequence[Any] | None) -> list[dict[str, Any]]:
    if ids is None:
        return []
    if ABSENT in ids:
        ids = [None if label is ABSENT else label for label in ids]
    if any(map(is_wrong_id, ids)):
        raise FallBack
    return [{} if label is None else {ID: label} for label in ids]


def _path_of(context: Mapping[str, Any], columns: Columns | None, error: FeatureError) -> str:
    """``columns``: of the candidates; None if they are rows."""
    if error.feature in context:
        return member(_CONTEXT_PATH, error.feature)
    if columns is None:
        return member(element(_CANDIDATES_PATH, error.sample), error.feature)
    path = member(_CANDIDATES_PATH, error.feature)
    return element(path, error.sample) if error.feature in columns else path
