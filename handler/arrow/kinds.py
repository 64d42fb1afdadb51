"""Which types of Arrow have a counterpart in JSON."""

from __future__ import annotations

from typing import Any

from handler.arrow.stream import pyarrow

__all__ = ["is_list", "is_number", "is_text", "wrong_kind"]

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


def _is_known(kind: Any) -> bool:
    types = pyarrow().types
    if is_list(kind):
        return _is_known(kind.value_type)
    if types.is_struct(kind):  # a weighted bag
        return all(_is_known(field.type) for field in kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    return is_number(kind) or is_text(kind) or bool(types.is_boolean(kind) or types.is_null(kind))
