"""Why a quick reader stops."""

from __future__ import annotations

__all__ = ["Doubt"]


class Doubt(Exception):
    """The body is wrong, or needs a closer look than a quick reader takes."""
