"""A value that its feature does not take, and how values are shown in messages."""

from __future__ import annotations

import json
from typing import Any, Literal

from dlrm_factory.errors import DLRMError

__all__ = ["FeatureError", "shown"]

_MAX_CHARACTERS = 60
_MAX_BITS = 256


class FeatureError(DLRMError):
    """One raw value is wrong. Whoever knows where the value came from turns this into a path.

    Args:
        message: feature, what was found, what is allowed, what to do.
        feature: name of the feature.
        sample: index of the sample.
        position: index in the sample's bag; None for a dense number, or for the bag as a whole.
        part: of a weighted bag, ``ids`` or ``weights``; None for a dense number, or for the bag as a whole.
        over_limit: the value is not wrong, but over a declared limit.
    """

    def __init__(
        self,
        message: str,
        *,
        feature: str,
        sample: int,
        position: int | None = None,
        part: Literal["ids", "weights"] | None = None,
        over_limit: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.feature = feature
        self.sample = sample
        self.position = position
        self.part = part
        self.over_limit = over_limit


def shown(value: Any) -> str:
    """``value`` as JSON in ASCII, short enough for a message."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        # Python refuses to print integers of more than 4,300 digits.
        return f"an integer of about {value.bit_length() * 30103 // 100_000} digits"
    if isinstance(value, str):
        value = value[:_MAX_CHARACTERS] + ("..." if len(value) > _MAX_CHARACTERS else "")
        return _text(value)
    return json.dumps(value)


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False)
