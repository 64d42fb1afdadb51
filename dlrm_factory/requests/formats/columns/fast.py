"""``inputs`` of numbers, read by simdjson into flat buffers: no Python object a value.

simdjson is as strict as the reference reader about UTF-8, the grammar and the range of numbers. But it flattens
nested arrays, gives the first of a key that comes twice, and skips a byte order mark, so these are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features import FeatureError
from dlrm_factory.requests.formats.columns.nulls import STAND_IN, mark_nulls
from dlrm_factory.requests.formats.columns.reference import column_path
from dlrm_factory.requests.formats.mistakes import element, member
from dlrm_factory.requests.formats.outputs import Asked, ModelOutputs, Output
from dlrm_factory.requests.formats.rows.fast import Values, sent_values
from dlrm_factory.requests.formats.shape import (
    FALL_BACKS,
    DecodedRequest,
    FallBack,
    PlainForm,
    RequestReader,
)

__all__ = ["ColumnsReader", "single_column_path"]

# A parser keeps several times the size of the largest body it has seen.
_MAX_BYTES_KEPT = 1 << 20
_MAX_LAYOUTS = 64
_SHORT_BYTES = 4096
_KEYS = frozenset(["inputs", "output", "outputs"])

# Messages of errors in a document, such as "DEPTH_ERROR: The JSON document was too deep".
_SIMDJSON_ERROR = re.compile(r"[A-Z_]+: ")

T = TypeVar("T", np.int64, np.bool_)
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_NO_IDS = np.empty(0, dtype=np.int64)


class ColumnsReader:
    """Reads columns by name. For one thread at a time: a parser has one document."""

    def __init__(self, reader: RequestReader) -> None:
        declaration = reader.encoder.declaration
        self._encoder = reader.encoder
        self._max_samples = reader.max_samples
        self._defaults = np.array([float(feature.default) for feature in declaration.dense_features])
        self._sparse_features = len(declaration.sparse_features)
        self._layouts = _Layouts(declaration)
        self._outputs = reader.outputs
        self._simdjson = _simdjson()
        self._parser = self._simdjson.Parser() if self._simdjson else None
        self._expects_nulls = False

    def read(self, raw: bytes) -> DecodedRequest | None:
        """The request, or None if the reference reader must look."""
        if self._parser is None or raw[:1] not in b"{ \t\r\n":
            return None
        if not self._expects_nulls:
            found = self._read(raw, nulls=0)
            if found is not None or b"null" not in raw:
                return found
        marked, nulls = mark_nulls(raw)
        found = self._read(marked, nulls=nulls)
        # What clients sent is the best guess of what they will send: one of the two readings is then for nothing.
        self._expects_nulls = nulls > 0 and found is not None
        return found

    def _read(self, raw: bytes, *, nulls: int) -> DecodedRequest | None:
        """The request in ``raw``, in which numbers stand for ``nulls`` nulls."""
        try:
            asked, layout, encode = self._parse(raw, nulls)
            batch = encode()
        except FALL_BACKS:
            return None
        path_of = partial(_path_of, layout)
        return DecodedRequest(
            batch=batch, asked=asked, form=PlainForm.PREDICTIONS, path_of=path_of, shape="columns"
        )

    def _parse(self, raw: bytes, nulls: int) -> tuple[Asked, _Layout, Callable[[], FeatureBatch]]:
        """Outputs asked for, the layout, and the encoding that remains to be done.

        Nothing of simdjson's is left behind: a parser takes the next body only when nothing refers to its last
        document. So the encoding, whose errors may hold their callers' frames, comes later.
        """
        parser: Any = self._parser if len(raw) <= _MAX_BYTES_KEPT else self._simdjson.Parser()
        try:
            document = self._object(_document(parser, raw))
            asked, brackets = _asked_of(document, self._outputs)
            columns = self._object(document[b"inputs"])
            layout = self._layouts.of(tuple(columns.keys()))
            arrays = _count_brackets(raw) - brackets
            return asked, layout, self._arrays(columns, layout, arrays=arrays, nulls=nulls)
        except FALL_BACKS:
            raise
        except Exception:
            self._parser = self._simdjson.Parser()  # whoever keeps the traceback keeps this one's document
            raise

    def _arrays(
        self, columns: Any, layout: _Layout, *, arrays: int, nulls: int
    ) -> Callable[[], FeatureBatch]:
        """Encoding of the samples of ``columns``, an object with ``arrays`` opening brackets.

        It holds arrays, and nothing of simdjson's.
        """
        dense_columns = [columns[key] for key in layout.dense_keys]
        sparse_columns = [columns[key] for key in layout.sparse_keys]
        self._check_arrays(dense_columns + sparse_columns)
        size = len((dense_columns or sparse_columns)[0])
        if size > self._max_samples:
            raise FallBack
        dense, dense_nulls, missing = self._dense(dense_columns, layout, size, marked=nulls > 0)
        if arrays == layout.columns:  # every bracket opens a column: no value is an array
            ids, there, id_nulls = self._ones(sparse_columns, layout, size, marked=nulls > 0)
            if nulls != dense_nulls + id_nulls:
                raise FallBack
            return partial(self._encoder.encode_single_valued, dense, ids, there, missing)
        bags = [_bag_column(column, size, marked=nulls > 0) for column in sparse_columns]
        # Every bracket opens a column or a bag. (One in a string makes the count too large, never too small.)
        if arrays != layout.columns + sum(bag.arrays for bag in bags):
            raise FallBack
        if nulls != dense_nulls + sum(bag.nulls for bag in bags):
            raise FallBack
        lengths = np.zeros((self._sparse_features, size), dtype=np.int32)
        for i, bag in zip(layout.sparse, bags, strict=True):
            lengths[i] = bag.lengths
        ids = np.concatenate([_NO_IDS, *(bag.ids for bag in bags)])
        return partial(self._encoder.encode_arrays, dense, lengths, ids, missing)

    def _object(self, value: Any) -> Any:
        if type(value) is not self._simdjson.Object:
            raise FallBack
        return value

    def _check_arrays(self, columns: list[Any]) -> None:
        if set(map(type, columns)) != {self._simdjson.Array}:
            raise FallBack

    def _dense(
        self, columns: list[Any], layout: _Layout, size: int, *, marked: bool
    ) -> tuple[Float64, int, Int64 | None]:
        """Float64 [number of dense features, size], how many were null, and how many lack each feature."""
        parts = _buffers(columns, "d", size)
        sent = np.frombuffer(bytearray().join(parts)).reshape(len(parts), size)
        nulls, missing = 0, None
        if marked:
            row, sample = np.nonzero(sent == STAND_IN)
            sent[row, sample] = self._defaults[layout.dense][row]
            nulls = len(row)
            if nulls:
                missing = np.bincount(np.array(layout.dense)[row], minlength=len(self._defaults))
        if len(sent) == len(self._defaults):
            return sent, nulls, missing
        dense = np.repeat(self._defaults, size).reshape(len(self._defaults), size)
        dense[layout.dense] = sent
        absent = np.full(len(self._defaults), size)
        absent[layout.dense] = 0
        return dense, nulls, absent if missing is None else absent + missing

    def _ones(
        self, columns: list[Any], layout: _Layout, size: int, *, marked: bool
    ) -> tuple[Int64, npt.NDArray[np.bool_] | None, int]:
        """Ids and mask for `encode_single_valued`, of columns of one integer a sample; and the number of nulls."""
        parts = _buffers(columns, "i", size)
        # Of a bytearray, so that the array can be written: torch takes no other.
        ids = np.frombuffer(bytearray().join(parts), dtype=np.int64).reshape(len(parts), size)
        there = ids != STAND_IN if marked else np.ones(ids.shape, dtype=np.bool_)
        nulls = ids.size - int(np.count_nonzero(there))
        if nulls:
            ids[~there] = 0
        elif not layout.absent:
            return ids, None, 0
        if layout.absent:
            ids, there = self._spread(ids, layout), self._spread(there, layout)
        return ids, there, nulls

    def _spread(self, sent: npt.NDArray[T], layout: _Layout) -> npt.NDArray[T]:
        """``sent`` [columns, B] → [F, B], 0 for the features that have no column."""
        spread = np.zeros((self._sparse_features, sent.shape[1]), dtype=sent.dtype)
        spread[layout.sparse] = sent
        return spread


def _count_brackets(raw: bytes) -> int:
    """Opening brackets in ``raw``; in long texts some times faster than bytes.count."""
    if len(raw) < _SHORT_BYTES:
        return raw.count(b"[")
    return int(np.count_nonzero(np.frombuffer(raw, dtype=np.uint8) == ord("[")))


def _simdjson() -> Any:
    """The module, or None: the reference reader does without."""
    try:
        import simdjson
    except ImportError:
        return None
    return simdjson


def _document(parser: Any, raw: bytes) -> Any:
    try:
        return parser.parse(raw)
    except ValueError:
        raise FallBack from None
    except RuntimeError as error:
        if not _SIMDJSON_ERROR.match(str(error)):  # a parser whose last document is still in use, for one
            raise
        raise FallBack from None


def _buffers(columns: list[Any], of_type: str, size: int) -> list[Any]:
    """All values of each array, ``size`` of float64 ("d") or int64 ("i"); FallBack for any others."""
    try:
        parts = [column.as_buffer(of_type=of_type) for column in columns]
    except (TypeError, ValueError):  # simdjson's, for values of another type or range
        raise FallBack from None
    if parts and {part.size for part in parts} != {8 * size}:
        raise FallBack
    return parts


def _asked_of(document: Any, outputs: ModelOutputs) -> tuple[Asked, int]:
    """Outputs that the body asks for, and the brackets in which it says so.

    FallBack unless the keys are ``inputs`` and perhaps ``output`` and ``outputs``, each once.
    """
    keys = list(document.keys())
    if keys == ["inputs"]:
        return outputs.asked["probability"], 0
    if "inputs" not in keys or len(set(keys)) < len(keys) or not _KEYS.issuperset(keys):
        raise FallBack
    output: Output | Any = document[b"output"] if "output" in keys else "probability"
    if output not in ("probability", "logit"):
        raise FallBack
    if "outputs" not in keys:
        return Asked(output, outputs.default), 0
    sent = document[b"outputs"]
    names = tuple(sent.as_list()) if hasattr(sent, "as_list") else ()
    if set(map(type, names)) != {str} or not outputs.are_plain(names):
        raise FallBack
    return Asked(output, names), 1


def single_column_path(error: FeatureError, declaration: DLRMDeclaration, values: Values) -> str:
    """Path of the wrong value in the body of one sample. ``values``: see `RowValues`."""
    columns = {name: [value] for name, value in sent_values(declaration, values).items()}
    return column_path(columns, error, "$.inputs")


def _path_of(layout: _Layout, error: FeatureError) -> str:
    path = member("$.inputs", error.feature)
    return element(path, error.sample) if error.feature in layout.names else path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Places of the columns of one list of names.

    Fields:
        names: as sent.
        dense, sparse: positions of the features sent, in declared order.
        dense_keys, sparse_keys: their names in UTF-8.
        absent: positions of the sparse features that were not sent.
        columns: how many were sent.
    """

    names: tuple[str, ...]
    dense: list[int]
    dense_keys: list[bytes]
    sparse: list[int]
    sparse_keys: list[bytes]
    absent: list[int]
    columns: int


class _Layouts:
    """Layouts by the names sent. A client sends the same names again and again, so they are kept."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        self._dense = declaration.dense_names
        self._sparse = declaration.sparse_names
        self._known = {*self._dense, *self._sparse}
        self._kept: dict[tuple[str, ...], _Layout] = {}

    def of(self, names: tuple[str, ...]) -> _Layout:
        """FallBack if a name is not a feature, or is there twice."""
        layout = self._kept.get(names)
        if layout is None:
            layout = self._sort(names)
            if len(self._kept) < _MAX_LAYOUTS:
                self._kept[names] = layout
        return layout

    def _sort(self, names: tuple[str, ...]) -> _Layout:
        sent = set(names)
        if not sent or len(sent) != len(names) or not sent <= self._known:
            raise FallBack
        dense, sparse = _positions(self._dense, sent), _positions(self._sparse, sent)
        return _Layout(
            names=names,
            dense=dense,
            dense_keys=[self._dense[i].encode() for i in dense],
            sparse=sparse,
            sparse_keys=[self._sparse[i].encode() for i in sparse],
            absent=sorted(set(range(len(self._sparse))) - set(sparse)),
            columns=len(sent),
        )


def _positions(names: Sequence[str], sent: set[str]) -> list[int]:
    return [i for i, name in enumerate(names) if name in sent]


class _Bags(NamedTuple):
    """The bags of one feature.

    Fields:
        ids: int64.
        lengths: ids in each bag, or in every bag.
        arrays: how many bags were written as arrays.
        nulls: how many were written as null.
    """

    ids: Int64
    lengths: Sequence[int] | npt.NDArray[np.bool_] | int
    arrays: int
    nulls: int


def _bag_column(column: Any, size: int, *, marked: bool) -> _Bags:
    """``size`` bags of integers. FallBack, or an error, for anything else.

    Args:
        column: a simdjson array.
        marked: `STAND_IN` may stand for null.
    """
    if len(column) != size:
        raise FallBack
    try:
        ids: Int64 = np.frombuffer(column.as_buffer(of_type="i"), dtype=np.int64)
    except (TypeError, ValueError):  # simdjson's, for values of another type or range
        raise FallBack from None
    gaps = ids == STAND_IN if marked else None
    if gaps is not None and not gaps.any():
        gaps = None
    # A column of arrays, or of both, may have as many ids as bags: then the count of brackets tells.
    of_ids = size > 0 and isinstance(column[0], int)
    if of_ids and len(ids) == size:
        if gaps is None:
            return _Bags(ids, 1, 0, 0)
        return _Bags(ids[~gaps], ~gaps, 0, int(gaps.sum()))
    if gaps is None and not of_ids:
        try:
            return _Bags(ids, list(map(len, column)), size, 0)
        except TypeError:  # ids and arrays of ids
            pass
    return _mixed(column.as_list(), marked=marked)


def _mixed(values: list[Any], *, marked: bool) -> _Bags:
    """Bags of integers and arrays of integers."""
    nulls = values.count(STAND_IN) if marked else 0
    bags = [
        value if type(value) is list else [] if marked and value == STAND_IN else [value] for value in values
    ]
    ids = list(chain.from_iterable(bags))
    if not set(map(type, ids)) <= {int} or (marked and STAND_IN in ids):
        raise FallBack
    arrays = sum(type(value) is list for value in values)
    return _Bags(np.array(ids, dtype=np.int64), list(map(len, bags)), arrays, nulls)
