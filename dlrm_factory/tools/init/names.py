"""What a column's name says of it."""

from __future__ import annotations

import re

__all__ = ["is_feature_name", "names_id", "names_time"]

_FEATURE = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_ID = frozenset(
    (
        "id", "ids", "uid", "uuid", "guid", "key", "code", "hash", "zip", "zipcode", "postcode",
        "sku", "isbn", "asin", "gtin", "user", "customer", "visitor", "session", "device", "item",
        "product", "movie", "article", "video", "song", "ad", "advert", "campaign", "creative",
        "category", "cat", "brand", "seller", "shop", "store", "site", "app", "page", "publisher",
        "advertiser", "query", "city", "region", "state", "country", "language", "locale",
        "browser", "os", "model", "type", "class", "group", "segment", "gender", "channel", "slot",
        "position",
    )
)  # fmt: skip
_TIME = frozenset(["time", "timestamp", "ts", "date", "datetime", "day", "created", "updated", "at", "when"])


def is_feature_name(name: str) -> bool:
    """Whether a declaration can have a feature of this name."""
    return _FEATURE.fullmatch(name) is not None


def names_id(name: str) -> bool:
    """``user_id``, ``zip``, ``itemCode``: numbers in such a column are names of things."""
    return _last(name) in _ID


def names_time(name: str) -> bool:
    """``created_at``, ``timestamp``, ``date``."""
    return _last(name) in _TIME


def _last(name: str) -> str:
    words = [word.lower() for word in _WORD.findall(name)]
    return words[-1] if words else ""
