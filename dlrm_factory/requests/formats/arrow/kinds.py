"""Which types of Arrow have a counterpart in JSON."""

from __future__ import annotations

from typing import Any

from dlrm_factory.requests.formats.arrow.stream import pyarrow

__all__ = ["is_list", "is_number", "is_text", "usual_kind", "wrong_kind"]

_SEND = "send numbers, strings, or lists of them"


def wrong_kind(kind: Any) -> str | None:
    """Why a column of type ``kind`` cannot be a feature; None if it may be one."""
    return None if _is_known(kind) else f"has the type {str(kind)[:100]}; {_SEND}"


def is_number(kind: Any) -> bool:
    """Whether a value of type ``kind`` is an integer or a float."""
    types = pyarrow().types
    return bool(types.is_integer(kind) or types.is_floating(kind))


def is_text(kind: Any) -> bool:
    """Whether a value of type ``kind`` is a string."""
    types = pyarrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind))


def is_list(kind: Any) -> bool:
    """Whether a value of type ``kind`` is a list, of any layout that has offsets or one size."""
    types = pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def usual_kind(kind: Any) -> Any:
    """Return the type with the same values as ``kind`` but none of the views that polars writes."""
    arrow = pyarrow()
    types = arrow.types
    if types.is_string_view(kind):
        return arrow.large_string()
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return arrow.large_list(usual_kind(kind.value_type))
    if types.is_dictionary(kind):
        # Of no values: of none but nulls.
        return kind if not types.is_null(kind.value_type) else arrow.null()
    if types.is_fixed_size_list(kind):
        return arrow.list_(usual_kind(kind.value_type), kind.list_size)
    if is_list(kind):
        make = arrow.large_list if types.is_large_list(kind) else arrow.list_
        return make(usual_kind(kind.value_type))
    return kind


def _is_known(kind: Any) -> bool:
    types = pyarrow().types
    kind = usual_kind(kind)
    if is_list(kind):
        return _is_known(kind.value_type)
    if types.is_struct(kind):  # a weighted bag
        return all(_is_known(field.type) for field in kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    return is_number(kind) or is_text(kind) or bool(types.is_boolean(kind) or types.is_null(kind))
