"""Keys written twice in one object. JSON leaves open which counts, and decoders silently take one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dlrm_factory.errors import RequestError
from dlrm_factory.features import shown
from dlrm_factory.requests.counting import count_byte
from dlrm_factory.requests.formats.mistakes import Mistakes
from dlrm_factory.requests.formats.paths import element, member

__all__ = ["check_duplicate_keys"]

# The only escape that becomes a colon; its last digit may be of either case.
_ESCAPED_COLON = b"\\u003"


class _Pairs(list[tuple[str, Any]]):
    """An object's members as written."""


def check_duplicate_keys(raw: bytes, body: Any) -> None:
    """RequestError for every key that an object in ``raw`` holds twice. ``body`` is what a decoder made of it.

    A member has one colon. So if ``raw`` has as many colons as ``body`` has members, and colons in its strings,
    no member was lost. Only if not, ``raw`` is read again.
    """
    colons = count_byte(raw, ":")
    if colons == _members_near_the_top(body):
        return
    if _ESCAPED_COLON not in raw and colons == _colons(body):
        return
    mistakes = Mistakes()
    try:
        # What the numbers are does not matter here, and Python refuses very long ones.
        written = json.loads(raw, object_pairs_hook=_Pairs, parse_int=str, parse_float=str)
        mistakes.add_all(_duplicates(written, "$"))
    except RecursionError:
        raise RequestError("the body is nested too deeply; send one JSON object in UTF-8") from None
    mistakes.check()


def _members_near_the_top(body: Any) -> int:
    """Members of the body and of the objects right below it: all there are in the common shapes."""
    if not isinstance(body, dict):
        return 0
    count = len(body)
    for value in body.values():
        if isinstance(value, dict):
            count += len(value)
        elif isinstance(value, list) and set(map(type, value)) == {dict}:
            count += sum(map(len, value))
    return count


def _colons(body: Any) -> int:
    """Members of all objects in ``body``, and colons in its strings."""
    count, rest = 0, [body]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            count += value.count(":")
        elif isinstance(value, dict):
            count += len(value)
            rest += value.keys()
            rest += value.values()
        elif isinstance(value, list) and not set(map(type, value)) <= {int, float}:
            rest += value
    return count


def _duplicates(value: Any, path: str) -> Iterator[RequestError]:
    if isinstance(value, _Pairs):
        seen: set[str] = set()
        for key, inner in value:
            if key in seen:
                yield RequestError(
                    f"{shown(key)} is written twice in one object; write it once", member(path, key)
                )
            seen.add(key)
            yield from _duplicates(inner, member(path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _duplicates(inner, element(path, i))
