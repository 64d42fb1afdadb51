"""JSONPaths of mistakes."""

from __future__ import annotations

import json
import re
from typing import Any

from dlrm_factory.features import FeatureError

__all__ = ["bag_element", "element", "member"]

_MOST_CHARACTERS = 100
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def member(parent: str, key: str) -> str:
    """``$.inputs.user_id``, or ``$["id_list_features.values"]`` for a key that is not a plain name."""
    if len(key) <= _MOST_CHARACTERS and _PLAIN.fullmatch(key):
        return f"{parent}.{key}"
    return f"{parent}[{json.dumps(key[:_MOST_CHARACTERS])}]"


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
