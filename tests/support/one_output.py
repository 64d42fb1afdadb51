"""Stub scorers of one output."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

__all__ = ["one_output"]


def one_output(logits: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """``logits``, which gives [B], as a scorer's ``outputs``, which gives [B, 1]."""

    @wraps(logits)
    def outputs(*args: Any, **kwargs: Any) -> np.ndarray:
        return logits(*args, **kwargs)[:, None]

    return outputs
