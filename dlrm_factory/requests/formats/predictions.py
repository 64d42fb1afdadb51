"""The answer of the shapes that hold any number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["predictions"]


def predictions(scores: Sequence[float]) -> dict[str, Any]:
    """One score a sample, in the request's order."""
    return {"predictions": scores}
