"""``inputs`` of numbers, read by simdjson into flat buffers: no Python object a value.

simdjson is as strict as the reference reader about UTF-8, the grammar and the range of numbers. But it flattens
nested arrays, lets a key come twice and skips a byte order mark, so these are checked here.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.features import FeatureError
from dlrm_factory.requests.formats.columns.layout import Layout, Layouts
from dlrm_factory.requests.formats.columns.nulls import STAND_IN, mark_nulls
from dlrm_factory.requests.formats.columns.values import bag_column
from dlrm_factory.requests.formats.fast.doubt import Doubt
from dlrm_factory.requests.formats.paths import element, member
from dlrm_factory.requests.formats.predictions import predictions
from dlrm_factory.requests.formats.shape import DecodedRequest, Output, RequestReader

__all__ = ["ColumnsReader"]

# A parser keeps several times the size of the largest body it has seen.
_MOST_BYTES_KEPT = 1 << 20
_SHORT_BYTES = 4096
# Whatever simdjson or a value of an unexpected kind raises: the reference reader knows what it means.
_DOUBTS = (
    Doubt,
    FeatureError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    OverflowError,
)

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
        self._layouts = Layouts(declaration)
        self._new_parser = _parser_type()
        self._parser = self._new_parser() if self._new_parser else None
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
        parser: Any = self._parser if len(raw) <= _MOST_BYTES_KEPT else self._new_parser()
        document = columns = None
        try:
            document = parser.parse(raw)
            output = _output_of(document)
            columns = document[b"inputs"]
            layout = self._layouts.of(tuple(columns.keys()))
            batch = self._batch(columns, layout, arrays=_count_brackets(raw), nulls=nulls)
        except _DOUBTS:
            return None
        finally:
            del document, columns  # a parser takes the next body only when nothing refers to this one
        path_of = partial(_path_of, layout)
        return DecodedRequest(batch=batch, output=output, content=predictions, path_of=path_of)

    def _batch(self, columns: Any, layout: Layout, *, arrays: int, nulls: int) -> FeatureBatch:
        """The samples of ``columns``, an object in a body with ``arrays`` opening brackets."""
        size = len(columns[(layout.dense_keys or layout.sparse_keys)[0]])
        if size > self._max_samples:
            raise Doubt
        dense, dense_nulls = self._dense(columns, layout, size, marked=nulls > 0)
        if arrays == layout.columns:  # every bracket opens a column: no value is an array
            ids, there, id_nulls = self._ones(columns, layout, size, marked=nulls > 0)
            if nulls != dense_nulls + id_nulls:
                raise Doubt
            return self._encoder.encode_ones(dense, ids, there)
        bags = [bag_column(columns[key], size, marked=nulls > 0) for key in layout.sparse_keys]
        # Every bracket opens a column or a bag. (One in a string makes the count too large, never too small.)
        if arrays != layout.columns + sum(bag.arrays for bag in bags):
            raise Doubt
        if nulls != dense_nulls + sum(bag.nulls for bag in bags):
            raise Doubt
        lengths = np.zeros((self._sparse_features, size), dtype=np.int32)
        for i, bag in zip(layout.sparse, bags, strict=True):
            lengths[i] = bag.lengths
        ids = np.concatenate([_NO_IDS, *(bag.ids for bag in bags)])
        return self._encoder.encode_arrays(dense, lengths, ids)

    def _dense(self, columns: Any, layout: Layout, size: int, *, marked: bool) -> tuple[Float64, int]:
        """Float64 [number of dense features, size], and how many were null."""
        parts = [columns[key].as_buffer(of_type="d") for key in layout.dense_keys]
        _check_sizes(parts, size)
        sent = np.frombuffer(bytearray().join(parts)).reshape(len(parts), size)
        nulls = 0
        if marked:
            row, sample = np.nonzero(sent == STAND_IN)
            sent[row, sample] = self._defaults[layout.dense][row]
            nulls = len(row)
        if len(sent) == len(self._defaults):
            return sent, nulls
        dense = np.repeat(self._defaults, size).reshape(len(self._defaults), size)
        dense[layout.dense] = sent
        return dense, nulls

    def _ones(
        self, columns: Any, layout: Layout, size: int, *, marked: bool
    ) -> tuple[Int64, npt.NDArray[np.bool_] | None, int]:
        """Ids and where there are any, see `encode_ones`, of columns of one integer a sample; how many were null."""
        parts = [columns[key].as_buffer(of_type="i") for key in layout.sparse_keys]
        _check_sizes(parts, size)
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

    def _spread(self, sent: npt.NDArray[T], layout: Layout) -> npt.NDArray[T]:
        """``sent`` [columns, B] → [F, B], 0 for the features that have no column."""
        spread = np.zeros((self._sparse_features, sent.shape[1]), dtype=sent.dtype)
        spread[layout.sparse] = sent
        return spread


def _count_brackets(raw: bytes) -> int:
    """Opening brackets in ``raw``; in long texts some times faster than bytes.count."""
    if len(raw) < _SHORT_BYTES:
        return raw.count(b"[")
    return int(np.count_nonzero(np.frombuffer(raw, dtype=np.uint8) == ord("[")))


def _parser_type() -> Any:
    """simdjson's Parser, or None: the reference reader does without."""
    try:
        from simdjson import Parser
    except ImportError:
        return None
    return Parser


def _check_sizes(parts: list[Any], size: int) -> None:
    """Doubt unless each of simdjson's buffers holds ``size`` values."""
    if parts and {part.size for part in parts} != {8 * size}:
        raise Doubt


def _output_of(document: Any) -> Output:
    """Doubt unless the keys are ``inputs`` and perhaps ``output``, each once."""
    keys = list(document.keys())
    if keys == ["inputs"]:
        return "probability"
    if sorted(keys) == ["inputs", "output"]:
        output = document[b"output"]
        if output == "probability":
            return "probability"
        if output == "logit":
            return "logit"
    raise Doubt


def _path_of(layout: Layout, error: FeatureError) -> str:
    path = member("$.inputs", error.feature)
    return element(path, error.sample) if error.feature in layout.names else path
