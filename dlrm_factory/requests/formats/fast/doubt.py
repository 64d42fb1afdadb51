"""Why a quick reader stops."""

from __future__ import annotations

import msgspec

from dlrm_factory.features import FeatureError

__all__ = ["DOUBTS", "Doubt"]


class Doubt(Exception):
    """The body is wrong, or needs a closer look than a quick reader takes."""


# What msgspec and an encoder raise for such a body.
DOUBTS = (Doubt, FeatureError, RecursionError, msgspec.DecodeError, UnicodeDecodeError)
