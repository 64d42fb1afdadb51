"""Mistakes of one request → the one error that answers it, and the JSONPaths of mistakes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureError

__all__ = ["MAX_LISTED", "Mistakes", "bag_element", "element", "member"]

MAX_LISTED = 10
_MAX_CHARACTERS = 100
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Mistakes:
    """Mistakes in the order found, as many as an answer lists. Looking for more would only cost the neighbours."""

    def __init__(self) -> None:
        self._found: list[RequestError] = []
        self._more = False

    @property
    def full(self) -> bool:
        """True if there are more than an answer lists, so that nobody need look on."""
        return self._more

    def add(self, mistake: RequestError) -> None:
        """Take ``mistake``; the one after the tenth only counts as more."""
        if len(self._found) < MAX_LISTED:
            self._found.append(mistake)
        else:
            self._more = True

    def add_all(self, mistakes: Iterable[RequestError]) -> None:
        """Take ``mistakes`` until there are enough."""
        for mistake in mistakes:
            if self.full:
                break
            self.add(mistake)

    def check(self) -> None:
        """Raise the first mistake, with the others in it, if there is one."""
        if self._found:
            first, *others = self._found
            raise type(first)(first.message, first.path, others=others, more=self._more)


def member(parent: str, key: str) -> str:
    """``$.inputs.user_id``, or ``$["id_list_features.values"]`` for a key that is not a plain name."""
    if len(key) <= _MAX_CHARACTERS and _PLAIN.fullmatch(key):
        return f"{parent}.{key}"
    return f"{parent}[{json.dumps(key[:_MAX_CHARACTERS])}]"


def element(parent: str, *indices: int | None) -> str:
    """``$.inputs.item_tags[3][0]``; an index that is None, and all after it, is left out."""
    for index in indices:
        if index is None:
            break
        parent += f"[{index}]"
    return parent


def bag_element(path: str, bag: Any, error: FeatureError) -> str:
    """The wrong value within ``bag``, which was sent as it is and stands at ``path``; else ``path`` itself."""
    if isinstance(bag, dict) and error.part:
        return element(member(path, error.part), error.position)
    return element(path, error.position) if isinstance(bag, list) else path
