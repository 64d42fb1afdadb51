"""Features, in plain Python or in arrays → the JSON of a request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlrm_factory.tools.client.errors import InvalidRequest

__all__ = ["columns_of", "encode_body"]

_MISSING = ("NAType", "NaTType")  # of pandas, which is not imported for them


def encode_body(body: Mapping[str, Any]) -> bytes:
    """Encode ``body`` as JSON in UTF-8. InvalidRequest names what JSON cannot hold.

    Arrays are anything with ``tolist``: those of NumPy, pandas, PyArrow and torch, and their scalars; also Series of
    polars. NaN, pandas' NA and NaT, and None are missing values.
    """
    try:
        try:
            return _dump(body)
        except ValueError as error:
            if isinstance(error, UnicodeEncodeError):
                raise
            # NaN, which is rare and takes a slower way.
            return _dump(_without_nan(body))
    except UnicodeEncodeError:
        raise InvalidRequest("a string holds half a surrogate pair, which is not Unicode") from None
    except RecursionError:
        raise InvalidRequest("the request is nested too deeply, or holds itself") from None
    except (TypeError, ValueError) as error:
        raise _named(body, error) from None


def columns_of(data: Any) -> Mapping[str, Any] | None:
    """Return name → values of a table of PyArrow, pandas or polars; None if ``data`` is none of these.

    Raises InvalidRequest where two columns have one name.
    """
    if hasattr(data, "to_pydict"):  # Table and RecordBatch of PyArrow
        names, values = list(data.schema.names), data.columns
    elif hasattr(data, "columns") and (hasattr(data, "iloc") or hasattr(data, "get_column")):
        names = [str(name) for name in data.columns]
        values = [
            data.iloc[:, i] if hasattr(data, "iloc") else data.get_column(name)
            for i, name in enumerate(names)
        ]
    else:
        return None
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f'the table has two columns "{name}"; send one')
    return dict(zip(names, values, strict=True))


def _dump(body: Any) -> bytes:
    return json.dumps(
        body,
        default=_plain,
        allow_nan=False,
        ensure_ascii=False,
        check_circular=False,
        separators=(",", ":"),
    ).encode()


def _plain(value: Any) -> Any:
    """Plain value that json can write, for one that it does not know."""
    for method in ("tolist", "to_pylist", "to_list"):
        if hasattr(value, method):
            return getattr(value, method)()
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    raise TypeError


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    plain = _plain(value)
    return value if type(plain) is type(value) else _without_nan(plain)


def _named(body: Mapping[str, Any], error: Exception) -> InvalidRequest:
    for path, message in _mistakes(body, "$"):
        return InvalidRequest(message, path=path)
    return InvalidRequest(f"the request cannot be written as JSON: {error}")


def _mistakes(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, message) of every value in ``value`` that JSON cannot hold."""
    if value is None or isinstance(value, (str, int)):
        return
    if isinstance(value, float):
        if math.isinf(value):
            yield path, f"{value} is not a number that can be sent; send None for a missing value"
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _mistakes(each, _member(path, key))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _mistakes(each, f"{path}[{index}]")
    else:
        yield from _mistakes_in_other(value, path)


def _mistakes_in_other(value: Any, path: str) -> Iterator[tuple[str, str]]:
    try:
        plain = _plain(value)
    except TypeError:
        plain = value
    if type(plain) is type(value):
        kind = type(value).__name__
        yield path, f"a value of type {kind} cannot be sent; send numbers, strings, lists or arrays of them"
        return
    yield from _mistakes(plain, path)


def _member(path: str, key: Any) -> str:
    name = str(key)
    return f"{path}.{name}" if name.isidentifier() and name.isascii() else f"{path}[{json.dumps(name)}]"
