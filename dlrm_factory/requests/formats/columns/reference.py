"""Columns by name.

::

    {"inputs": {"price": [9.5, 3.0], "user_id": ["u17", 4], "item_tags": [[3, 9], []]}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureError, shown
from dlrm_factory.requests.formats.mistakes import Mistakes, bag_element, element, member
from dlrm_factory.requests.formats.outputs import Asked
from dlrm_factory.requests.formats.shape import (
    DecodedRequest,
    PlainForm,
    RequestReader,
    Shape,
    check_samples,
    encode_columns,
    unknown_names,
)

__all__ = ["INPUTS", "check_columns", "column_path"]

_KEY = "inputs"
_PATH = "$.inputs"


def _decode(body: Mapping[str, Any], asked: Asked, reader: RequestReader) -> DecodedRequest:
    columns = body[_KEY]
    size = check_columns(columns, reader, _PATH)

    def path_of(error: FeatureError) -> str:
        return column_path(columns, error, _PATH)

    batch = encode_columns(reader, columns, size, path_of)
    return DecodedRequest(
        batch=batch, asked=asked, form=PlainForm.PREDICTIONS, path_of=path_of, shape="columns"
    )


def check_columns(
    columns: Any, reader: RequestReader, path: str, *, also: AbstractSet[str] = frozenset()
) -> int:
    """The number of samples. RequestError unless ``columns``, at ``path``, is an object of equally long lists.

    Every column is a feature's or in ``also``.
    """
    if not isinstance(columns, dict):
        raise RequestError(f"{shown(columns)} is not an object; send a list of values a feature", path)
    if not columns:
        raise RequestError(
            "there are no columns, so the number of samples is unknown; send at least one", path
        )
    mistakes = Mistakes()
    mistakes.add_all(unknown_names(columns, reader, path, also=also))
    mistakes.add_all(_not_lists(columns, path))
    if all(isinstance(column, list) for column in columns.values()):
        mistakes.add_all(_unequal_lengths(columns, path))
    mistakes.check()
    size = len(next(iter(columns.values())))
    check_samples(size, reader, path)
    return size


def column_path(columns: Mapping[str, Sequence[Any]], error: FeatureError, path: str) -> str:
    """Path of the wrong value; ``path`` is that of ``columns``."""
    column = member(path, error.feature)
    if error.feature not in columns:
        return column
    return bag_element(element(column, error.sample), columns[error.feature][error.sample], error)


def _not_lists(columns: Mapping[str, Any], path: str) -> Iterator[RequestError]:
    for name, column in columns.items():
        if not isinstance(column, list):
            yield RequestError(
                f"column {shown(name)} is {shown(column)}, not a list; send one value a sample, "
                "or leave the column out to take the default",
                member(path, name),
            )


def _unequal_lengths(columns: Mapping[str, list[Any]], path: str) -> Iterator[RequestError]:
    first, *others = columns
    for name in others:
        if len(columns[name]) != len(columns[first]):
            yield RequestError(
                f"column {shown(name)} has {len(columns[name])} values, but column {shown(first)} has "
                f"{len(columns[first])}; send one value a sample in each",
                member(path, name),
            )


INPUTS = Shape(name=_KEY, keys=(_KEY,), decode=_decode)
