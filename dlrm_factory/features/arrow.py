"""Arrow columns → NumPy arrays, with the same answers about types in training and serving.

Policy is the callers': which types a feature takes, what becomes of a wrong value, and how the error names it.
pyarrow is loaded at first use, for a server may lack it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.features.ids import INT64_MAX

__all__ = [
    "above_int64",
    "decoded",
    "flatten_column",
    "integers",
    "is_list",
    "is_number",
    "is_text",
    "numbers",
    "plain_column",
    "plain_type",
    "pyarrow",
    "shared_bytes",
]

Lengths = npt.NDArray[np.integer[Any]]
Int64 = npt.NDArray[np.int64]


@cache
def pyarrow() -> Any:
    """Package pyarrow with its compute functions and IPC. ImportError if it is not installed."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.ipc

    return pyarrow


def is_text(kind: Any) -> bool:
    """Test for strings of any layout, dictionary-encoded or not."""
    types = pyarrow().types
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_number(kind: Any) -> bool:
    """Test for integers, floats and decimals."""
    types = pyarrow().types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def is_list(kind: Any) -> bool:
    """Test for lists that have offsets or one size; `plain_type` makes such a list of a view."""
    types = pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def plain_type(kind: Any) -> Any:
    """Type with the same values as ``kind`` but none of the views that polars writes."""
    arrow = pyarrow()
    types = arrow.types
    if types.is_string_view(kind):
        return arrow.large_string()
    if types.is_dictionary(kind):
        # A dictionary without values encodes nothing but nulls.
        return kind if not types.is_null(kind.value_type) else arrow.null()
    if is_list(kind) or _is_list_view(kind):
        values = plain_type(kind.value_type)
        return kind if values == kind.value_type and is_list(kind) else arrow.large_list(values)
    if types.is_struct(kind):
        return arrow.struct([field.with_type(plain_type(field.type)) for field in kind])
    return kind


def plain_column(column: Any) -> Any:
    """Cast an array to its `plain_type`. ArrowException if Arrow cannot, or if list views overlap."""
    kind = plain_type(column.type)
    if kind == column.type:
        return column
    arrow = pyarrow()
    if kind == arrow.null():
        return arrow.nulls(len(column))
    if arrow.types.is_struct(kind):
        parts = [plain_column(column.field(i)) for i in range(kind.num_fields)]
        return arrow.StructArray.from_arrays(parts, fields=list(kind), mask=column.is_null())
    if not is_list(kind):
        return column.cast(kind)
    # Put together here: the offsets that Arrow 26 casts those of a list view to end in memory that is not theirs.
    values = plain_column(_flattened(column))
    lengths = arrow.compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    return arrow.LargeListArray.from_arrays(arrow.array(offsets), values, mask=column.is_null())


def shared_bytes(column: Any) -> int:
    """Bytes that decoding a column may take beyond a small multiple of its own size.

    Texts count that values may share, in views and in dictionaries; and 8 bytes each the values in lists of what may
    take no memory at all, such as nulls and empty lists. ArrowException if list views overlap.
    """
    types, kind = pyarrow().types, column.type
    if types.is_primitive(kind):
        return 0
    if types.is_dictionary(kind) and is_text(kind):
        places = column.indices.drop_null().to_numpy(zero_copy_only=False)
        return int(_text_lengths(column.dictionary)[places].sum(dtype=np.int64))
    if types.is_string_view(kind):
        return int(_text_lengths(column).sum(dtype=np.int64))
    if types.is_struct(kind):
        return sum(shared_bytes(column.field(i)) for i in range(kind.num_fields))
    if is_list(kind) or _is_list_view(kind):
        values = _flattened(column)
        return 0 if types.is_primitive(values.type) else 8 * len(values) + shared_bytes(values)
    return 0


def decoded(column: Any) -> Any:
    """Decode a dictionary of anything but text, whose distinct values are worth keeping."""
    if pyarrow().types.is_dictionary(column.type) and not is_text(column.type):
        return column.dictionary_decode()
    return column


def numbers(column: Any, missing: float) -> npt.NDArray[np.floating[Any]]:
    """Float [n] of a column for which `is_number` holds, ``missing`` where it is null. No copy of floats without nulls.

    The dtype is float64 unless the column holds narrower floats and no null.
    """
    if column.null_count or not _is_numpy(column.type):
        column = column.cast("float64", safe=False).fill_null(missing)
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def integers(column: Any) -> Int64:
    """Int64 [n] of a column of integers without nulls, of which `above_int64` finds none. No copy of int64."""
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return values.astype(np.int64, copy=False)


def above_int64(column: Any) -> npt.NDArray[np.bool_] | None:
    """Mask, bool [n], of the integers over 2**63 - 1 in a column without nulls; None if there are none."""
    if not pyarrow().types.is_uint64(column.type):
        return None
    over: npt.NDArray[np.bool_] = column.to_numpy(zero_copy_only=True) > np.uint64(INT64_MAX)
    return over if over.any() else None


def flatten_column(column: Any) -> tuple[Any, Lengths]:
    """Bags of a column: an array of all values one after another, and the integer lengths [n].

    A list is a bag, whose nulls stay among the values; any other value is a bag of one; a null is an empty bag. A
    dictionary of values or of a list's values is decoded unless it is of text.
    """
    # Integers are the most frequent: one question is enough for them.
    if not pyarrow().types.is_integer(column.type):
        column = decoded(column)
        if is_list(column.type):
            lengths = pyarrow().compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=True)
            # Not `values`: flatten leaves out what a sliced array or a null list hides.
            return decoded(column.flatten()), lengths
    if not column.null_count:
        return column, np.ones(len(column), dtype=np.int32)
    return column.drop_null(), column.is_valid().to_numpy(zero_copy_only=False).astype(np.int32)


def _flattened(column: Any) -> Any:
    """Values of lists or list views. ArrowException if views overlap: few bytes would become many."""
    if _is_list_view(column.type):
        arrow = pyarrow()
        total = arrow.compute.sum(arrow.compute.list_value_length(column).cast("int64")).as_py() or 0
        if total > len(column.values):
            raise arrow.ArrowInvalid("its list views overlap; write it as a list")
    return column.flatten()


def _text_lengths(texts: Any) -> npt.NDArray[np.integer[Any]]:
    """Bytes of each text, 0 for a null."""
    arrow = pyarrow()
    if not arrow.types.is_string_view(texts.type):
        lengths: npt.NDArray[Any] = arrow.compute.binary_length(texts).fill_null(0).to_numpy()
        return lengths
    if not len(texts):
        return np.empty(0, dtype=np.int32)
    # Arrow 26 has no length of a view; its 16 bytes begin with that.
    stop = texts.offset + len(texts)
    views = np.frombuffer(texts.buffers()[1], dtype=np.int32, count=4 * stop)[4 * texts.offset :: 4]
    return np.where(texts.is_valid().to_numpy(zero_copy_only=False), views, 0)


def _is_list_view(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_list_view(kind) or types.is_large_list_view(kind))


def _is_numpy(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_integer(kind) or types.is_floating(kind))
