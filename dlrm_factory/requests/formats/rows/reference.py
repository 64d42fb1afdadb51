"""Rows by name.

::

    {"instances": [{"price": 9.5, "user_id": "u17", "item_tags": [3, 9]}, {"user_id": 4}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter
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

__all__ = ["INSTANCES", "check_rows", "columns_of", "row_path", "value_path"]

_KEY = "instances"
_PATH = "$.instances"


def _decode(body: Mapping[str, Any], asked: Asked, reader: RequestReader) -> DecodedRequest:
    rows = body[_KEY]
    if not isinstance(rows, list):
        raise RequestError(f"{shown(rows)} is not a list; send a list of objects, one a sample", _PATH)
    check_rows(rows, reader, _PATH)

    def path_of(error: FeatureError) -> str:
        return row_path(rows, error, _PATH)

    batch = encode_columns(reader, columns_of(rows), len(rows), path_of)
    return DecodedRequest(batch=batch, asked=asked, form=PlainForm.PREDICTIONS, path_of=path_of, shape="rows")


def check_rows(
    rows: Sequence[Any], reader: RequestReader, path: str, *, also: AbstractSet[str] = frozenset()
) -> None:
    """RequestError unless every row, at ``path``, is an object of features and of the names in ``also``."""
    check_samples(len(rows), reader, path)
    known = reader.encoder.known | also
    if all(type(row) is dict for row in rows) and set().union(*rows) <= known:
        return
    mistakes = Mistakes()
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            mistakes.add(
                RequestError(
                    f"{shown(row)} is not an object; send the sample's features by name", element(path, i)
                )
            )
        elif not row.keys() <= known:
            mistakes.add_all(unknown_names(row, reader, element(path, i), also=also))
        if mistakes.full:
            break
    mistakes.check()


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, Sequence[Any]]:
    """The rows' values by name, null where a row leaves one out."""
    names = tuple(rows[0]) if rows else ()
    if len(names) > 1 and all(len(row) == len(names) for row in rows):
        # Mostly all rows have the same names: one C call a row instead of one a value.
        try:
            return dict(zip(names, zip(*map(itemgetter(*names), rows), strict=True), strict=True))
        except KeyError:
            pass
    present: set[str] = set().union(*rows)
    return {name: [row.get(name) for row in rows] for name in present}


def row_path(rows: Sequence[Mapping[str, Any]], error: FeatureError, path: str) -> str:
    """Path of the wrong value; ``path`` is that of ``rows``."""
    return value_path(rows[error.sample], error, element(path, error.sample))


def value_path(row: Mapping[str, Any], error: FeatureError, path: str) -> str:
    """Path of the wrong value; ``path`` is that of ``row``."""
    return bag_element(member(path, error.feature), row.get(error.feature), error)


INSTANCES = Shape(name=_KEY, keys=(_KEY,), decode=_decode)
