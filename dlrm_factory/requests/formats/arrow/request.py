"""Columns of an Arrow stream → a request, with the errors of the same columns sent as ``inputs``."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.features import FeatureError, shown
from dlrm_factory.features.arrow import plain_column, plain_type, pyarrow, shared_bytes
from dlrm_factory.requests.formats import decode_body
from dlrm_factory.requests.formats.arrow.columns import as_list, bags, numbers, wrong_type
from dlrm_factory.requests.formats.arrow.stream import read_table
from dlrm_factory.requests.formats.mistakes import Mistakes, element, member
from dlrm_factory.requests.formats.outputs import Asked
from dlrm_factory.requests.formats.shape import (
    DecodedRequest,
    PlainForm,
    RequestReader,
    check_samples,
)

__all__ = ["decode_arrow"]

_PATH = "$.inputs"
_OUTPUT, _OUTPUTS = b"output", b"outputs"
# A few bytes of the body may be the text of every sample, and no bytes may be a list of a billion nulls.
_MAX_SHARED_BYTES = 64_000_000
_INDEX = re.compile(r"__index_level_\d+__")


def decode_arrow(raw: bytes, reader: RequestReader) -> DecodedRequest:
    """The request in an Arrow stream. RequestError, or LimitError, as for JSON.

    A column a feature: numbers, integers, strings (also dictionary-encoded), or lists of ids; a null as in JSON.
    The schema's metadata may say ``output``, and ``outputs`` as a JSON list.
    """
    try:
        return _decode(read_table(raw), reader)
    except UnicodeDecodeError:  # of a name, which pyarrow decodes only when it is asked for
        raise RequestError(
            "a name in the Arrow stream is not UTF-8; write it with pyarrow or the like"
        ) from None


def _decode(table: Any, reader: RequestReader) -> DecodedRequest:
    check_samples(table.num_rows, reader, _PATH)
    table = _without_index(table, reader)
    _check_columns(table)
    columns, left = {}, _MAX_SHARED_BYTES
    for name in table.column_names:
        columns[name], taken = _array(name, table.column(name), left)
        left -= taken
    metadata = table.schema.metadata or {}
    output = metadata.get(_OUTPUT, b"probability").decode("utf-8", "replace")
    sent = _outputs(metadata.get(_OUTPUTS))
    if columns and columns.keys() <= reader.encoder.known and output in ("probability", "logit"):
        try:
            batch = _encode(columns, table.num_rows, reader)
            names = reader.outputs.chosen(sent)
            asked = Asked("logit" if output == "logit" else "probability", names)
            return DecodedRequest(
                batch=batch, asked=asked, form=PlainForm.PREDICTIONS, path_of=_path_of, shape="arrow"
            )
        except (FeatureError, pyarrow().ArrowException):  # explained below
            pass
    try:
        inputs = {name: column.to_pylist() for name, column in columns.items()}
    except (ValueError, pyarrow().ArrowException) as error:  # a struct that has a field twice
        raise RequestError(f"a column cannot be read: {str(error)[:200]}; see its type", _PATH) from None
    return decode_body({"inputs": inputs, "output": output, "outputs": sent}, reader)


def _outputs(sent: bytes | None) -> Any:
    """Value of the metadata's JSON; its text if it is none."""
    if sent is None:
        return None
    try:
        return msgspec.json.decode(sent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return sent.decode("utf-8", "replace")


def _without_index(table: Any, reader: RequestReader) -> Any:
    """The table without the index that pandas adds to it."""
    names = table.column_names
    index = [name for name in names if _INDEX.fullmatch(name) and name not in reader.encoder.known]
    # By place, for there may be two columns of one name, which is told later.
    return table.select([i for i, name in enumerate(names) if name not in index]) if index else table


def _array(name: str, column: Any, left: int) -> tuple[Any, int]:
    """Values of a table's column in one array, of a type that has no views, and their `shared_bytes`.

    LimitError for over ``left`` such bytes.
    """
    kind = plain_type(column.type)
    try:
        if kind == pyarrow().null():
            # Arrow makes no array of no chunks of a dictionary without values.
            return pyarrow().nulls(len(column)), 0
        array = _one_chunk(column)
        taken = shared_bytes(array)
        if taken <= left:
            return array if kind == column.type else plain_column(array), taken
    except pyarrow().ArrowException as error:
        raise RequestError(
            f"column {shown(name)} of type {str(column.type)[:100]} cannot be read: {str(error)[:200]}",
            member(_PATH, name),
        ) from None
    raise LimitError(
        f"column {shown(name)}: its values would take over {format_bytes(_MAX_SHARED_BYTES)}, each on its "
        "own; send fewer samples, shorter texts, or shorter lists",
        member(_PATH, name),
    )


def _check_columns(table: Any) -> None:
    mistakes = Mistakes()
    seen: set[str] = set()
    for field in table.schema:
        if field.name in seen:
            mistakes.add(
                RequestError(
                    f"there are two columns {shown(field.name)}; send one", member(_PATH, field.name)
                )
            )
        seen.add(field.name)
        wrong = wrong_type(field.type)
        if wrong:
            mistakes.add(RequestError(f"column {shown(field.name)} {wrong}", member(_PATH, field.name)))
    mistakes.check()


def _one_chunk(column: Any) -> Any:
    """The column's values in one array; only a stream of several record batches is copied for it."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _encode(columns: dict[str, Any], size: int, reader: RequestReader) -> FeatureBatch:
    declaration = reader.encoder.declaration
    dense = np.empty((len(declaration.dense_features), size), dtype=np.float64)
    missing = np.zeros(len(dense), dtype=np.int64)
    for i, feature in enumerate(declaration.dense_features):
        column = columns.get(feature.name)
        missing[i] = size if column is None else column.null_count
        found = np.float64(feature.default) if column is None else numbers(column, feature.default)
        if found is None:
            return _encode_lists(columns, size, reader)
        dense[i] = found
    lengths = np.zeros((len(declaration.sparse_features), size), dtype=np.int32)
    parts = [np.empty(0, dtype=np.int64)]
    for i, name in enumerate(declaration.sparse_names):
        bag = bags(columns[name]) if name in columns else (np.int32(0), parts[0])
        if bag is None:
            return _encode_lists(columns, size, reader)
        lengths[i] = bag[0]
        parts.append(bag[1])
    told = missing if missing.any() else None
    return reader.encoder.encode_arrays(dense, lengths, np.concatenate(parts), told)


def _encode_lists(columns: dict[str, Any], size: int, reader: RequestReader) -> FeatureBatch:
    """The same where some column is not all numbers."""
    return reader.encoder.encode({name: as_list(column) for name, column in columns.items()}, size)


def _path_of(error: FeatureError) -> str:
    return element(member(_PATH, error.feature), error.sample)
