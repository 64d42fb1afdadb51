"""Types for msgspec's decoders, made of a declaration's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dlrm_factory.requests.formats.rows.values import ABSENT, Bag, Number
from dlrm_factory.requests.formats.shape import Output

__all__ = ["body_decoder", "column_type", "row_type"]


def row_type(dense: Sequence[str], sparse: Sequence[str]) -> Any:
    """A struct of one row, values by name; `ABSENT` where it says nothing. None if msgspec cannot look for a name."""
    return _struct(dense, sparse, Number, Bag, ABSENT)


def column_type(dense: Sequence[str], sparse: Sequence[str]) -> Any:
    """A struct of columns with one value each, ``(ABSENT,)`` where there is no column. None as above."""
    return _struct(dense, sparse, tuple[Number], tuple[Bag], (ABSENT,))


def body_decoder(key: str, kind: Any) -> msgspec.json.Decoder[Any]:
    """A decoder of whole bodies, whose ``key`` holds a ``kind``."""
    fields: list[tuple[str, Any, Any]] | Any = [(key, kind), ("output", msgspec.UnsetType | Output, ABSENT)]
    return msgspec.json.Decoder(msgspec.defstruct("Body", fields, forbid_unknown_fields=True, gc=False))


def _struct(dense: Sequence[str], sparse: Sequence[str], number: Any, bag: Any, absent: Any) -> Any:
    kinds: list[tuple[str, Any]] = [*((name, number) for name in dense), *((name, bag) for name in sparse)]
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
