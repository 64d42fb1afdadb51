"""Features, in plain Python or in arrays → the JSON of a request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlrm_factory.client.errors import InvalidRequest

__all__ = ["encode_body"]


def encode_body(body: Mapping[str, Any]) -> bytes:
    """``body`` as JSON in UTF-8. InvalidRequest names what JSON cannot hold.

    Arrays are anything with ``tolist``: those of NumPy, pandas, PyArrow and torch, and their scalars.
    """
    try:
        text = json.dumps(
            body,
            default=_plain,
            allow_nan=False,
            ensure_ascii=False,
            check_circular=False,
            separators=(",", ":"),
        )
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("a string holds half a surrogate pair, which is not Unicode") from None
    except RecursionError:
        raise InvalidRequest("the request is nested too deeply, or holds itself") from None
    except (TypeError, ValueError) as error:
        raise _named(body, error) from None


def _plain(value: Any) -> Any:
    """What json can write, for a value that it does not know."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    raise TypeError


def _named(body: Mapping[str, Any], error: Exception) -> InvalidRequest:
    for path, message in _mistakes(body, "$"):
        return InvalidRequest(message, path=path)
    return InvalidRequest(f"the request cannot be written as JSON: {error}")


def _mistakes(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, message) of every value in ``value`` that JSON cannot hold."""
    if value is None or isinstance(value, (str, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
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
